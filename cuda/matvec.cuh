// What the two kinds of `matvec` share: their arguments, and how x is normalised.
#pragma once
#include "quant.cuh"

template <class F, class G>
constexpr bool SAME = false;
template <class F>
constexpr bool SAME<F, F> = true;

struct Matvec {
    Segment segments[3];
    uint32_t n_segments;
    uint32_t cols;   // padded
    uint32_t width;  // of x
    uint32_t x_stride;
    const float *x;
    const float *norm_weight;  // (width)
    const float *norm_bias;    // (width), or null
    uint32_t norm;
    float eps;
    uint32_t epilogue;
    uint32_t activation;
    float alpha, limit;
    float scale;    // y is multiplied by it, before it is set or added
    float softcap;  // 0 for none: y = softcap * tanh(y / softcap)
    uint32_t n_tokens;
    const uint32_t *experts;  // null, or (n_slots): which expert each slot goes to; then slot = blockIdx.y
    uint32_t slots_a_token;   // x of slot s is x[s / slots_a_token]
    uint32_t warps_a_tile;    // of block formats: so many warps share the columns of sixteen rows
    uint32_t tiles_a_pass;    // sixteen rows each, that a block works on at once
    uint32_t n_tiles;
    uint32_t stages;       // slots of a warp's ring
    uint32_t second_from;  // the first segment of the second type, where an instance has two
};

struct Moments {
    float mean, factor;
};

// Four neighbours. Rows whose width is no multiple of four begin anywhere.
template <bool ALIGNED>
__device__ __forceinline__ float4 load4(const float *row, uint32_t c, uint32_t width) {
    if (ALIGNED) return c < width ? *(const float4 *)(row + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(c < width ? row[c] : 0.0f, c + 1 < width ? row[c + 1] : 0.0f, c + 2 < width ? row[c + 2] : 0.0f, c + 3 < width ? row[c + 3] : 0.0f);
}

// Vectors that a thread asks for at once, for a norm's sums and for the values.
#define AHEAD 4
#define STAGED 2

template <bool ALIGNED>
__device__ __forceinline__ Moments moments(const Matvec &a, const float *row, float *room) {
    Moments m = {0.0f, 1.0f};
    const uint32_t step = 4 * blockDim.x;
    if (a.norm == NORM_LAYER) {
        float sum = 0.0f;
        for (uint32_t c0 = 4 * threadIdx.x; c0 < a.width; c0 += AHEAD * step) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) v[k] = load4<ALIGNED>(row, c0 + k * step, a.width);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) sum += (v[k].x + v[k].y) + (v[k].z + v[k].w);
        }
        m.mean = block_sum(sum, room) / (float)a.width;
    }
    if (a.norm != NORM_NONE) {
        float squares = 0.0f;
        for (uint32_t c0 = 4 * threadIdx.x; c0 < a.width; c0 += AHEAD * step) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) v[k] = load4<ALIGNED>(row, c0 + k * step, a.width);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                const float d[4] = {v[k].x - m.mean, v[k].y - m.mean, v[k].z - m.mean, v[k].w - m.mean};
#pragma unroll
                for (int i = 0; i < 4; i++) squares = c0 + k * step + i < a.width ? fmaf(d[i], d[i], squares) : squares;
            }
        }
        m.factor = 1.0f / sqrtf(block_sum(squares, room) / (float)a.width + a.eps);
    }
    return m;
}

__device__ __forceinline__ float4 normed(const Matvec &a, const Moments &m, float4 v, float4 w, float4 b) {
    if (a.norm != NORM_NONE) {
        v.x = (v.x - m.mean) * m.factor * w.x, v.y = (v.y - m.mean) * m.factor * w.y;
        v.z = (v.z - m.mean) * m.factor * w.z, v.w = (v.w - m.mean) * m.factor * w.w;
    }
    v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
    return v;
}

__device__ __forceinline__ float finish(const Matvec &a, float y) {
    y *= a.scale;
    return a.softcap > 0.0f ? a.softcap * tanhf(y / a.softcap) : y;
}
