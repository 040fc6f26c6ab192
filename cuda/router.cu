// The router of a mixture of experts for many tokens, in f32: a choice has no tolerance.
//
//   y[t][r] = sum_c w[r][c] * x[t][c] + bias[r]
//
// Shapes: w (rows, cols) in planes; x (n_tokens, x_stride) f32; y (n_tokens, rows) f32. A block has four tokens, a warp one row after the other.
// Bytes moved: the matrix once for every four tokens, from the second-level cache; x once.
#include "quant.cuh"

#define TOKENS 4

struct Router {
    Segment segment;
    const float *x;
    uint32_t cols, width;  // padded, and not
    uint32_t x_stride;
    uint32_t n_tokens;
};

template <class F>
__device__ __forceinline__ void router(const Router &a) {
    extern __shared__ __align__(16) float xs[];
    const uint32_t lane = threadIdx.x % WARP, units = a.cols / F::UNIT, token0 = blockIdx.x * TOKENS;
    const int stride = (padded<F>((int)a.cols) + 7) / 4 * 4;
    let_next_start();
    wait_for_inputs();
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t c = threadIdx.x; c < a.cols; c += blockDim.x)
            xs[t * stride + padded<F>(c)] = token0 + t < a.n_tokens && c < a.width ? a.x[(size_t)(token0 + t) * a.x_stride + c] : 0.0f;
    __syncthreads();
    for (uint32_t row = threadIdx.x / WARP; row < a.segment.rows; row += blockDim.x / WARP) {
        const Planes from = row_of<F>(a.segment.weights, row);
        float sums[TOKENS] = {};
        for (uint32_t u = lane; u < units; u += WARP) {
            const float *x = xs + padded<F>(F::column(u));
            float w[F::UNIT];
            F::decode(F::load(from, u), w);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
#pragma unroll
                for (int i = 0; i < F::UNIT; i += 4) {
                    const float4 v = *(const float4 *)(x + t * stride + F::offset(i));
                    sums[t] = fmaf(w[i], v.x, sums[t]);
                    sums[t] = fmaf(w[i + 1], v.y, sums[t]);
                    sums[t] = fmaf(w[i + 2], v.z, sums[t]);
                    sums[t] = fmaf(w[i + 3], v.w, sums[t]);
                }
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const float y = warp_sum(sums[t]);
            if (lane == 0 && token0 + t < a.n_tokens)
                a.segment.out[(size_t)(token0 + t) * a.segment.out_stride + row] = y + (a.segment.bias ? a.segment.bias[row] : 0.0f);
        }
    }
}

#define INSTANCE(F) \
    extern "C" __global__ void __launch_bounds__(256) router_##F(const __grid_constant__ Router a) { router<F>(a); }
FOR_EACH_TYPE(INSTANCE)
