// Normalisations that stand alone, and the way of f32 activations into f16 for the tensor cores.
//
// rms:   x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019)
// layer: (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias (Ba et al. 2016)
// One block a row of `width` values; bytes moved: each row read (from the second-level cache but for the first time) and written once.
#include "common.cuh"

struct Norm {
    const float *x;  // (rows, x_stride)
    const float *weight, *bias;
    float *out;     // (rows, out_stride)
    __half *half_out;  // (rows, out_stride), or null
    float *scales;  // (rows): what half_out must be multiplied by, a power of two
    uint32_t width, cols;  // cols: width padded; columns of half_out beyond width are zero
    uint32_t x_stride, out_stride;
    uint32_t norm;
    float eps;
    float scale;   // of the normalised value, where it is added
    uint32_t add;  // 1: out += scale * norm(x)
};

struct Moments {
    float mean, factor;
};

__device__ __forceinline__ Moments moments(const float *row, const Norm &a, float *room) {
    Moments m = {0.0f, 1.0f};
    if (a.norm == NORM_LAYER) {
        float sum = 0.0f;
        for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) sum += row[c];
        m.mean = block_sum(sum, room) / (float)a.width;
    }
    if (a.norm != NORM_NONE) {
        float squares = 0.0f;
        for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) {
            const float v = row[c] - m.mean;
            squares = fmaf(v, v, squares);
        }
        m.factor = 1.0f / sqrtf(block_sum(squares, room) / (float)a.width + a.eps);
    }
    return m;
}

__device__ __forceinline__ float normed(const Norm &a, const Moments &m, float v, uint32_t c) {
    if (a.norm != NORM_NONE) v = (v - m.mean) * m.factor * a.weight[c];
    return a.bias ? v + a.bias[c] : v;
}

// out = or += scale * norm(x); x and out may be the same.
extern "C" __global__ void __launch_bounds__(256) norm_rows(const __grid_constant__ Norm a) {
    let_next_start();
    wait_for_inputs();
    __shared__ float room[32];
    const float *row = a.x + (size_t)blockIdx.x * a.x_stride;
    float *to = a.out + (size_t)blockIdx.x * a.out_stride;
    const Moments m = moments(row, a, room);
    for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) {
        const float v = normed(a, m, row[c], c) * a.scale;
        to[c] = a.add ? to[c] + v : v;
    }
}

// half_out = norm(x) / scales[row], where the scale keeps the row's largest value within what f16 holds.
extern "C" __global__ void __launch_bounds__(256) norm_half(const __grid_constant__ Norm a) {
    let_next_start();
    wait_for_inputs();
    __shared__ float room[32];
    const float *row = a.x + (size_t)blockIdx.x * a.x_stride;
    __half *to = a.half_out + (size_t)blockIdx.x * a.out_stride;
    const Moments m = moments(row, a, room);
    float largest = 0.0f;
    for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) largest = fmaxf(largest, fabsf(normed(a, m, row[c], c)));
    largest = block_max(largest, room);
    float scale = 1.0f;
    while (largest > 32768.0f * scale && scale < 1e30f) scale *= 2.0f;
    if (threadIdx.x == 0) a.scales[blockIdx.x] = scale;
    for (uint32_t c = threadIdx.x; c < a.cols; c += blockDim.x)
        to[c] = c < a.width ? __float2half_rn(normed(a, m, row[c], c) / scale) : __half(0.0f);
}

// gate = activation(gate, up); one thread a value.
extern "C" __global__ void gate_rows(float *gate, const float *up, uint64_t n, uint32_t activation, float alpha, float limit) {
    let_next_start();
    wait_for_inputs();
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) gate[i] = up ? gated(activation, gate[i], up[i], alpha, limit) : activate(activation, gate[i]);
}

// hidden[t] *= sigmoid(share . norm(x[t])): how much a shared expert counts. One block a token; width as in Norm, out is hidden with
// out_stride columns.
extern "C" __global__ void __launch_bounds__(256) share_rows(const __grid_constant__ Norm a, const float *share) {
    let_next_start();
    wait_for_inputs();
    __shared__ float room[32];
    const float *row = a.x + (size_t)blockIdx.x * a.x_stride;
    const Moments m = moments(row, a, room);
    float dot = 0.0f;
    for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) dot = fmaf(share[c], normed(a, m, row[c], c), dot);
    const float factor = 1.0f / (1.0f + expf(-block_sum(dot, room)));
    float *to = a.out + (size_t)blockIdx.x * a.out_stride;
    for (uint32_t c = threadIdx.x; c < a.out_stride; c += blockDim.x) to[c] *= factor;
}
