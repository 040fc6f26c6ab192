// Matrix times one to eight vectors, for matrices of floats; the formula, shapes and bytes are those of matvec.cu.
//
// A warp computes a row at a time, or a row of each of two matrices that are joined; a lane multiplies units lane, lane + 32, ... in that
// order, then the lanes are added as a butterfly. So the bits of y[t][r] depend on x[t] and row r alone: not on T, not on the grid.
// The first weights are asked for before x is normalised; each unit's successor before it is used.
#include "matvec.cuh"

// Brings x, normalised, to shared memory, columns at padded<F>().
template <class F, bool ALIGNED>
__device__ __forceinline__ void stage_row(const Matvec &a, const float *row, float *to, float *room) {
    const uint32_t step = 4 * blockDim.x;
    const Moments m = moments<ALIGNED>(a, row, room);
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (uint32_t c0 = 4 * threadIdx.x; c0 < a.cols; c0 += STAGED * step) {
        float4 v[STAGED], w[STAGED];
#pragma unroll
        for (int k = 0; k < STAGED; k++) {
            v[k] = load4<ALIGNED>(row, c0 + k * step, a.width);
            w[k] = a.norm != NORM_NONE ? load4<ALIGNED>(a.norm_weight, c0 + k * step, a.width) : zero;
        }
#pragma unroll
        for (int k = 0; k < STAGED; k++) {
            const uint32_t c = c0 + k * step;
            if (c >= a.cols) break;
            const float4 b = a.norm_bias ? load4<ALIGNED>(a.norm_bias, c, a.width) : zero;
            *(float4 *)(to + padded<F>(c)) = normed(a, m, v[k], w[k], b);
        }
    }
}

template <class F>
__device__ void stage_x(const Matvec &a, const float *x, uint32_t n_tokens, int stride, float *xs, float *room) {
    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *row = x + (size_t)t * a.x_stride;
        if (a.width % 4 == 0) {
            stage_row<F, true>(a, row, xs + t * stride, room);
        } else {
            stage_row<F, false>(a, row, xs + t * stride, room);
        }
    }
    __syncthreads();
}

// One unit times T tokens.
template <class F, int T>
__device__ __forceinline__ void multiply_floats(uint32_t n_tokens, const typename F::Raw &raw, int u, const float *xs, int stride, float (&acc)[T]) {
    const float *x = xs + padded<F>(F::column(u));
    float w[F::UNIT];
    F::decode(raw, w);
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (T > 1 && t >= n_tokens) break;
#pragma unroll
        for (int i = 0; i < F::UNIT; i += 4) {
            const float4 v = *(const float4 *)(x + t * stride + F::offset(i));
            acc[t] = fmaf(w[i], v.x, acc[t]);
            acc[t] = fmaf(w[i + 1], v.y, acc[t]);
            acc[t] = fmaf(w[i + 2], v.z, acc[t]);
            acc[t] = fmaf(w[i + 3], v.w, acc[t]);
        }
    }
}

// Floats that a token's x takes in shared memory.
template <class F>
__device__ __forceinline__ int shared_stride(uint32_t cols) {
    return padded<F>((int)cols) + 4;
}

// What becomes of the sums of one row, or of a row of each matrix of a pair.
template <int T>
__device__ __forceinline__ void store_row(const Matvec &a, const Segment &s, uint32_t row, uint32_t slot, const float (&first)[T], const float (&second)[T]) {
    const uint32_t expert = a.experts ? a.experts[slot] : 0, lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (lane != t || t >= a.n_tokens) continue;
        float y = first[t] + (s.bias ? s.bias[(size_t)expert * s.rows + row] : 0.0f);
        if (a.epilogue == GATED) {
            const Segment &up = a.segments[1];
            y = gated(a.activation, y, second[t] + (up.bias ? up.bias[(size_t)expert * up.rows + row] : 0.0f), a.alpha, a.limit);
        } else if (a.epilogue == PLAIN) {
            y = activate(a.activation, y);
        }
        float *to = s.out + (size_t)(a.experts ? slot : t) * s.out_stride + row;
        y = finish(a, y);
        *to = a.epilogue == ADD ? *to + y : y;
    }
}

template <class F, int T>
__device__ __forceinline__ void matvec(const Matvec &a) {
    extern __shared__ __align__(16) float xs[];
    __shared__ float room[32];
    const uint32_t lane = threadIdx.x % WARP, units = a.cols / F::UNIT, passes = (units + WARP - 1) / WARP;
    const int stride = shared_stride<F>(a.cols);
    const bool pairs = a.epilogue == GATED;
    let_next_start();
    if (a.experts) wait_for_inputs();  // which weights are read is an input too
    const uint32_t slot = blockIdx.y, expert = a.experts ? a.experts[slot] : 0;
    const uint32_t rows0 = a.segments[0].rows, rows1 = rows0 + (a.n_segments > 1 ? a.segments[1].rows : 0);
    const uint32_t items = pairs ? rows0 : rows1 + (a.n_segments > 2 ? a.segments[2].rows : 0);

    // an item is a row, or in pairs a row of each matrix, one after the other; neighbouring items go to different multiprocessors
    typename F::Raw raw;
    Planes at;
    auto locate = [&](uint32_t item, uint32_t &segment) {
        segment = pairs || item < rows0 ? 0 : item < rows1 ? 1 : 2;
        return segment == 0 ? item : item - (segment == 1 ? rows0 : rows1);
    };
    auto open = [&](uint32_t item, uint32_t half) {
        uint32_t segment;
        const uint32_t row = locate(item, segment);
        const Segment &s = a.segments[segment + half];
        at = row_of<F>(s.weights, (size_t)expert * s.rows + row);
    };

    const uint32_t step = gridDim.x * (blockDim.x / WARP);
    uint32_t item = (threadIdx.x / WARP) * gridDim.x + blockIdx.x, half = 0, pass = 0;
    if (item < items) {
        open(item, 0);
        if (lane < units) raw = F::load(at, lane);
    }
    wait_for_inputs();
    const uint32_t first_token = a.experts ? slot / a.slots_a_token : 0;
    stage_x<F>(a, a.x + (size_t)first_token * a.x_stride, a.n_tokens, stride, xs, room);

    float acc[T], first[T];
#pragma unroll
    for (int t = 0; t < T; t++) acc[t] = 0.0f;
    while (item < items) {
        const typename F::Raw now = raw;
        const uint32_t u = pass * WARP + lane, of = item, of_half = half;
        const bool ends = ++pass == passes;
        if (ends) {
            pass = 0, half ^= pairs ? 1 : 0;
            if (half == 0) item += step;
            if (item < items) open(item, half);
        }
        const uint32_t next = pass * WARP + lane;
        if (item < items && next < units) raw = F::load(at, next);
        if (u < units) {
            multiply_floats<F, T>(a.n_tokens, now, u, xs, stride, acc);
        }
        if (!ends) continue;
#pragma unroll
        for (int t = 0; t < T; t++) acc[t] = warp_sum(acc[t]);
        if (pairs && of_half == 0) {
#pragma unroll
            for (int t = 0; t < T; t++) first[t] = acc[t];
        } else {
            uint32_t segment;
            const uint32_t row = locate(of, segment);
            if (pairs) {
                store_row<T>(a, a.segments[0], row, slot, first, acc);
            } else {
                store_row<T>(a, a.segments[segment], row, slot, acc, acc);
            }
        }
#pragma unroll
        for (int t = 0; t < T; t++) acc[t] = 0.0f;
    }
}

// Names for the host: matvec_floats_F16_1 is for one token. Sixteen warps a block, always: the order of a norm's sum depends on it.
#define INSTANCE(F, T, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(512, BLOCKS) matvec_floats_##F##_##T(const __grid_constant__ Matvec a) { matvec<F, T>(a); }
#define INSTANCES(F) INSTANCE(F, 1, 2) INSTANCE(F, 2, 1) INSTANCE(F, 8, 1)
FOR_EACH_FLOAT(INSTANCES)
