// What becomes of a head before attention, by one warp: its norm, its rotation, and how its key or value is rounded and stored.
//
// rope (Su et al. 2021): pair (a, b) of a head turns by position * frequency[pair]: (a cos - b sin, a sin + b cos), both times `magnitude`.
// Angles are f32 products, as the models were trained with.
//
// Page layout of a layer: for each key-value head, keys as (wide / 8, PAGE, 8), then values as (PAGE, wide); wide = head_dim rounded up to 8.
// Of Q8_0, signed bytes, wide is a multiple of 32, and scales, halves, follow: those of keys as (wide / 32, PAGE), of values as (PAGE, wide / 32).
// `rope.cu` and `attend.cu` both go this way, so that a key has the same bits whichever of them stores it.
#pragma once
#include "common.cuh"

struct Rope {
    const Step *step;
    float *q, *k;
    const float *v;
    u8 *pool;
    uint64_t page_elements, layer_offset;  // in elements
    const float *q_norm, *k_norm;          // (head_dim) weights of a norm a head, or null
    const float *frequencies;              // (dims / 2), or null for no rotation
    uint32_t n_heads, n_kv_heads, head_dim, wide;
    uint32_t q_stride, kv_stride;
    uint32_t dims;
    uint32_t halves;  // 1: pair (i, i + dims / 2); 0: (2i, 2i + 1)
    float magnitude;
    float eps;
};

// Whether each 32 elements of a position share a scale.
template <class E>
constexpr bool SCALED = false;
template <>
constexpr bool SCALED<int8_t> = true;

// Elements of a head's keys, or of its values, in a page; an element of Q8_0 is a byte, and a scale two of them.
template <class E>
__device__ __forceinline__ uint32_t part_elements(uint32_t wide) {
    return (SCALED<E> ? wide + wide / 16 : wide) * PAGE;
}

// The frequency of the first pair that a thread turns, to be asked for early.
__device__ __forceinline__ float first_frequency(const Rope &a) {
    return a.frequencies && threadIdx.x < a.dims / 2 ? a.frequencies[threadIdx.x] : 0.0f;
}

// Cosines and sines of a position, (dims / 2), by all threads of a block.
__device__ __forceinline__ void find_angles(const Rope &a, uint32_t position, float frequency, float2 *angles) {
    if (!a.frequencies) return;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < a.dims / 2; i += blockDim.x) {
        float sine, cosine;
        sincosf((float)position * (i < blockDim.x ? frequency : a.frequencies[i]), &sine, &cosine);
        angles[i] = make_float2(cosine * a.magnitude, sine * a.magnitude);
    }
}

// A query or key, (head_dim) in shared memory, is normalised under `weight`, where there is one, and rotated.
__device__ __forceinline__ void turn_head(const Rope &a, float *head, const float *weight, const float2 *angles) {
    const uint32_t lane = threadIdx.x % WARP;
    if (weight) {
        float squares = 0.0f;
#pragma unroll 1
        for (uint32_t i = lane; i < a.head_dim; i += WARP) squares = fmaf(head[i], head[i], squares);
        const float factor = 1.0f / sqrtf(warp_sum(squares) / (float)a.head_dim + a.eps);
#pragma unroll 1
        for (uint32_t i = lane; i < a.head_dim; i += WARP) head[i] = head[i] * factor * weight[i];
        __syncwarp();
    }
    if (a.frequencies) {
#pragma unroll 1
        for (uint32_t i = lane; i < a.dims / 2; i += WARP) {
            const uint32_t i0 = a.halves ? i : 2 * i, i1 = a.halves ? i + a.dims / 2 : 2 * i + 1;
            const float x = head[i0], y = head[i1], c = angles[i].x, s = angles[i].y;
            head[i0] = x * c - y * s;
            head[i1] = x * s + y * c;
        }
        __syncwarp();
    }
}

__device__ __forceinline__ void store(__half *to, float v) { *to = __float2half_rn(v); }
__device__ __forceinline__ void store(float *to, float v) { *to = v; }

// 32 values, a lane each, as GGUF rounds a block of Q8_0: integers to the nearest, halves away from zero, under the largest over 127.
__device__ __forceinline__ int8_t round_block(float v, __half &scale) {
    const float largest = __any_sync(ALL, v != v) ? NAN : warp_max(fabsf(v));
    const float exact = largest / 127.0f, inverse = exact == 0.0f ? 0.0f : 1.0f / exact;
    scale = __float2half_rn(exact);
    return (int8_t)roundf(v * inverse);
}

// A head, (head_dim), is stored as a key or a value, padded with zeros: in the place `slot` of its head's part of a page, and, as (wide), in
// `copy`, unless that is null; scales follow in both.
template <class E>
__device__ __forceinline__ void store_head(const Rope &a, const float *head, bool is_key, E *part, uint32_t slot, E *copy) {
#pragma unroll 1
    for (uint32_t i = threadIdx.x % WARP; i < a.wide; i += WARP) {
        const float v = i < a.head_dim ? head[i] : 0.0f;
        E rounded;
        if constexpr (SCALED<E>) {
            __half scale;
            rounded = round_block(v, scale);
            if (i % WARP == 0) {
                ((__half *)(part + a.wide * PAGE))[is_key ? i / 32 * PAGE + slot : slot * (a.wide / 32) + i / 32] = scale;
                if (copy) ((__half *)(copy + a.wide))[i / 32] = scale;
            }
        } else {
            store(&rounded, v);
        }
        part[is_key ? (i / 8 * PAGE + slot) * 8 + i % 8 : slot * a.wide + i] = rounded;
        if (copy) copy[i] = rounded;
    }
}
