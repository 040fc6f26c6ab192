// Attention of a few tokens over pages: splits of the positions in parallel, then their combination.
//
//   out[t][h] = sum_p softmax_p(cap(scale * q[t][h] . k[p][h / group])) v[p][h / group],  p from the window's start to the token's own position
//
// with softcap(s) = cap * tanh(s / cap) where there is one, and a sink, a logit per head that takes part in the softmax and has no value.
// Shapes: q (n_tokens, q_stride), out (n_tokens, out_stride), pages as rope.cu tells. Bytes moved: keys and values of the positions, once
// for all heads of a group. A split is SPLIT positions from a multiple of SPLIT on, so that a token's bits depend on its own positions alone.
// Grid (n_kv_heads, splits, n_tokens); partial results (n_tokens, n_heads, max_splits): largest score, sum of exponentials, weighted values.
#include "common.cuh"

#define SPLIT 128u
#define GROUP_MAX 16

struct Attend {
    const Step *step;
    const float *q;
    const u8 *pool;
    float *partial;     // (n_tokens, n_heads, max_splits, wide + 2)
    float *out;
    const float *sinks;  // (n_heads), or null
    uint64_t page_elements, layer_offset;
    uint32_t n_heads, n_kv_heads, head_dim, wide;
    uint32_t q_stride, out_stride;
    uint32_t max_splits;
    uint32_t window;  // positions that a token sees, its own included; 0 for all
    float scale, softcap;
    uint32_t first_token;  // of the step: blockIdx.z counts from it
};

__device__ __forceinline__ void load8(const __half *from, float *to) {
    const uint4 v = __ldg((const uint4 *)from);
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 f = __half22float2(*(const __half2 *)&w[i]);
        to[2 * i] = f.x, to[2 * i + 1] = f.y;
    }
}

__device__ __forceinline__ void load8(const float *from, float *to) {
    const float4 a = __ldg((const float4 *)from), b = __ldg((const float4 *)(from + 4));
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

// Threads: SPLIT. Scores: a thread a position. Values: eight columns a thread, positions dealt out among the threads of the same columns.
template <class E, int G>
__device__ void attend_split(const Attend &a, uint32_t split, uint32_t kv_head, uint32_t t, float *shared) {
    const uint32_t group = a.n_heads / a.n_kv_heads, position = a.step->position + a.first_token + t;
    const uint32_t begin = split * SPLIT, wide = a.wide;
    float *q = shared;                   // (group, wide)
    float *p = q + group * wide;         // (group, SPLIT)
    float *room = p + group * SPLIT;     // (32)
    const float *from = a.q + (size_t)t * a.q_stride + (size_t)kv_head * group * a.head_dim;
    for (uint32_t i = threadIdx.x; i < group * wide; i += blockDim.x) q[i] = i % wide < a.head_dim ? from[i / wide * a.head_dim + i % wide] : 0.0f;
    __syncthreads();

    const uint32_t mine = begin + threadIdx.x;
    const uint32_t oldest = a.window && position + 1 > a.window ? position + 1 - a.window : 0;
    const bool visible = mine <= position && mine >= oldest;
    const E *page = (const E *)a.pool + a.step->pages[begin / PAGE] * a.page_elements + a.layer_offset + (size_t)kv_head * 2 * wide * PAGE;
    float score[G];
#pragma unroll
    for (int g = 0; g < G; g++) score[g] = 0.0f;
    if (visible) {
        const E *key = page + (size_t)(mine % PAGE) * 8;
        for (uint32_t c = 0; c < wide / 8; c++) {
            float k[8];
            load8(key + (size_t)c * PAGE * 8, k);
#pragma unroll
            for (int g = 0; g < G; g++) {
                if (g >= group) break;
                const float *qg = q + g * wide + 8 * c;
#pragma unroll
                for (int i = 0; i < 8; i++) score[g] = fmaf(qg[i], k[i], score[g]);
            }
        }
    }
    float *stats = a.partial + (((size_t)t * a.n_heads + kv_head * group) * a.max_splits + split) * (wide + 2);
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (g >= group) break;
        float s = score[g] * a.scale;
        if (a.softcap > 0.0f) s = a.softcap * tanhf(s / a.softcap);
        if (!visible) s = -INFINITY;
        const float largest = block_max(s, room);
        const float e = visible ? expf(s - largest) : 0.0f;
        const float sum = block_sum(e, room);
        p[g * SPLIT + threadIdx.x] = e;
        if (threadIdx.x == 0) {
            stats[(size_t)g * a.max_splits * (wide + 2)] = largest;
            stats[(size_t)g * a.max_splits * (wide + 2) + 1] = sum;
        }
    }
    __syncthreads();

    const uint32_t lanes = wide / 8, ways = SPLIT / lanes;  // `ways` threads share eight columns
    const uint32_t c = threadIdx.x % lanes, way = threadIdx.x / lanes;
    float acc[G][8];
#pragma unroll
    for (int g = 0; g < G; g++)
#pragma unroll
        for (int i = 0; i < 8; i++) acc[g][i] = 0.0f;
    const uint32_t stop = min(SPLIT, position + 1 - begin), start = oldest > begin ? oldest - begin : 0;
    if (way < ways) {
        const E *value = page + (size_t)wide * PAGE + (size_t)(begin % PAGE) * wide + 8 * c;
        for (uint32_t i = start + way; i < stop; i += ways) {
            float v[8];
            load8(value + (size_t)i * wide, v);
#pragma unroll
            for (int g = 0; g < G; g++) {
                if (g >= group) break;
                const float e = p[g * SPLIT + i];
#pragma unroll
                for (int k = 0; k < 8; k++) acc[g][k] = fmaf(e, v[k], acc[g][k]);
            }
        }
    }
    // the shares of the ways are added in their order, a head at a time, in the room of p
    float *shares = p + group * SPLIT + 32;  // (ways, wide)
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (g >= group) break;
        if (way < ways)
#pragma unroll
            for (int k = 0; k < 8; k++) shares[way * wide + 8 * c + k] = acc[g][k];
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < wide; i += blockDim.x) {
            float sum = 0.0f;
            for (uint32_t w = 0; w < ways; w++) sum += shares[w * wide + i];
            stats[(size_t)g * a.max_splits * (wide + 2) + 2 + i] = sum;
        }
        __syncthreads();
    }
}

template <class E, int G>
__device__ __forceinline__ void attend(const Attend &a) {
    extern __shared__ float shared[];
    const uint32_t t = blockIdx.z;
    if (a.first_token + t >= a.step->n_tokens) return;
    const uint32_t position = a.step->position + a.first_token + t;
    const uint32_t oldest = a.window && position + 1 > a.window ? position + 1 - a.window : 0;
    for (uint32_t split = oldest / SPLIT + blockIdx.y; split <= position / SPLIT; split += gridDim.y) {
        attend_split<E, G>(a, split, blockIdx.x, t, shared);
        __syncthreads();
    }
}

#define INSTANCE(E, NAME, G) \
    extern "C" __global__ void __launch_bounds__(SPLIT) attend_##NAME##_##G(const __grid_constant__ Attend a) { attend<E, G>(a); }
INSTANCE(__half, f16, 1) INSTANCE(__half, f16, 4) INSTANCE(__half, f16, 8) INSTANCE(__half, f16, 16)
INSTANCE(float, f32, 1) INSTANCE(float, f32, 4) INSTANCE(float, f32, 8) INSTANCE(float, f32, 16)

// Grid (n_heads, n_tokens). The splits are combined in their order.
extern "C" __global__ void __launch_bounds__(128) attend_combine(const __grid_constant__ Attend a) {
    const uint32_t h = blockIdx.x, t = blockIdx.y;
    if (a.first_token + t >= a.step->n_tokens) return;
    const uint32_t position = a.step->position + a.first_token + t, wide = a.wide;
    const uint32_t oldest = a.window && position + 1 > a.window ? position + 1 - a.window : 0;
    const uint32_t first = oldest / SPLIT, last = position / SPLIT;
    const float *partial = a.partial + ((size_t)t * a.n_heads + h) * a.max_splits * (wide + 2);
    float largest = a.sinks ? a.sinks[h] : -INFINITY;
    for (uint32_t s = first; s <= last; s++) largest = fmaxf(largest, partial[(size_t)s * (wide + 2)]);
    float sum = a.sinks ? expf(a.sinks[h] - largest) : 0.0f;
    for (uint32_t s = first; s <= last; s++) sum = fmaf(partial[(size_t)s * (wide + 2) + 1], expf(partial[(size_t)s * (wide + 2)] - largest), sum);
    float *to = a.out + (size_t)t * a.out_stride + h * a.head_dim;
    for (uint32_t i = threadIdx.x; i < a.head_dim; i += blockDim.x) {
        float v = 0.0f;
        for (uint32_t s = first; s <= last; s++) {
            const float *of = partial + (size_t)s * (wide + 2);
            v = fmaf(of[2 + i], expf(of[0] - largest), v);
        }
        to[i] = v / sum;
    }
}
