// Normalisations that stand alone, and the way of f32 activations into f16 for the tensor cores.
//
// rms:   x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019)
// layer: (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias (Ba et al. 2016)
// One block a row of `width` values; bytes moved: each row read (from the second-level cache but for the first time) and written once.
#include "matmul.cuh"

struct Norm {
    const float *x;  // (rows, x_stride)
    const float *weight, *bias;
    float *out;     // (rows, out_stride)
    __half *half_out;  // (panel_rows, cols) in panels (matmul.cuh), or null
    float *scales;  // (rows): what half_out must be multiplied by, a power of two
    uint32_t width, cols;  // cols: width padded; columns of half_out beyond width are zero
    uint32_t x_stride, out_stride;
    uint32_t norm;
    float eps;
    float scale;   // of the normalised value, where it is added
    uint32_t add;  // 1: out += scale * norm(x)
    // of norm_half alone
    const Groups *groups;   // as many rows as there are sorted slots; or null
    const uint32_t *order;  // row r of half_out is row order[r] / n_used of x; or null
    uint32_t n_used;
    uint32_t panel_rows;
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

// Eight values from a column on, zeros beyond the width.
template <bool ALIGNED>
__device__ __forceinline__ void load8(const float *row, uint32_t c, uint32_t width, float (&v)[8]) {
    if (ALIGNED && c + 8 <= width) {
        const float4 a = *(const float4 *)(row + c), b = *(const float4 *)(row + c + 4);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = c + k < width ? row[c + k] : 0.0f;
    }
}

// A row in panels: every block reads its row two to four times, from the first-level cache but for the first.
template <bool ALIGNED>
__device__ __forceinline__ void norm_half(const Norm &a, const float *row, uint32_t to) {
    __shared__ float room[32];
    const uint32_t step = 8 * blockDim.x;
    float v[8];
    Moments m = {0.0f, 1.0f};
    if (a.norm == NORM_LAYER) {
        float sum = 0.0f;
        for (uint32_t c = 8 * threadIdx.x; c < a.width; c += step) {
            load8<ALIGNED>(row, c, a.width, v);
#pragma unroll
            for (int k = 0; k < 8; k++) sum += v[k];
        }
        m.mean = block_sum(sum, room) / (float)a.width;
    }
    if (a.norm != NORM_NONE) {
        float squares = 0.0f;
        for (uint32_t c = 8 * threadIdx.x; c < a.width; c += step) {
            load8<ALIGNED>(row, c, a.width, v);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float d = c + k < a.width ? v[k] - m.mean : 0.0f;
                squares = fmaf(d, d, squares);
            }
        }
        m.factor = 1.0f / sqrtf(block_sum(squares, room) / (float)a.width + a.eps);
    }
    auto normed8 = [&](uint32_t c) {
        load8<ALIGNED>(row, c, a.width, v);
        if (a.norm == NORM_NONE) return;
        float w[8];
        load8<ALIGNED>(a.weight, c, a.width, w);
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] = (v[k] - m.mean) * m.factor * w[k];
        if (!a.bias) return;
        load8<ALIGNED>(a.bias, c, a.width, w);
#pragma unroll
        for (int k = 0; k < 8; k++) v[k] += w[k];
    };
    float largest = 0.0f;
    for (uint32_t c = 8 * threadIdx.x; c < a.width; c += step) {
        normed8(c);
#pragma unroll
        for (int k = 0; k < 8; k++) largest = fmaxf(largest, fabsf(v[k]));
    }
    largest = block_max(largest, room);
    float scale = 1.0f;
    while (largest > 32768.0f * scale && scale < 1e30f) scale *= 2.0f;
    if (threadIdx.x == 0) a.scales[to] = scale;
    for (uint32_t c = 8 * threadIdx.x; c < a.cols; c += step) {
        normed8(c);
        uint4 packed;
        __half2 *h = (__half2 *)&packed;
#pragma unroll
        for (int k = 0; k < 4; k++) h[k] = __floats2half2_rn(v[2 * k] / scale, v[2 * k + 1] / scale);
        *(uint4 *)(a.half_out + in_panels(a.panel_rows, to, c)) = packed;
    }
}

// half_out = norm(x) / scales[row], where the scale keeps the row's largest value within what f16 holds.
extern "C" __global__ void __launch_bounds__(256) norm_half(const __grid_constant__ Norm a) {
    let_next_start();
    wait_for_inputs();
    const uint32_t to = blockIdx.x;
    if (a.groups && to >= a.groups->n_rows) return;
    const uint32_t slot = a.order ? a.order[to] : to;
    if (slot == NOBODY) return;
    const float *row = a.x + (size_t)(a.order ? slot / a.n_used : slot) * a.x_stride;
    if (a.width % 4 == 0 && a.x_stride % 4 == 0) {
        norm_half<true>(a, row, to);
    } else {
        norm_half<false>(a, row, to);
    }
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
