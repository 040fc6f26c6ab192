// Attention of a few tokens over pages: splits of the positions in parallel, combined by the block that comes last.
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
    uint32_t *arrived;   // (n_tokens, n_kv_heads), zero between launches
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

// Where the partial result of a split lies.
__device__ __forceinline__ float *partial_at(const Attend &a, uint32_t t, uint32_t head, uint32_t split) {
    return a.partial + (((size_t)t * a.n_heads + head) * a.max_splits + split) * (a.wide + 2);
}

// One split of one key-value head for one token. Threads: SPLIT. Scores: a thread a position. Values: eight columns a thread, positions dealt
// out among the threads of the same columns.
template <class E, int G>
__device__ void attend_split(const Attend &a, uint32_t split, uint32_t kv_head, uint32_t t, uint32_t position, uint32_t oldest, float *shared) {
    const uint32_t group = a.n_heads / a.n_kv_heads, begin = split * SPLIT, wide = a.wide;
    float *q = shared;                // (group, wide)
    float *p = q + group * wide;      // (group, SPLIT)
    float *room = p + group * SPLIT;  // (2, G, 4)
    const uint32_t mine = begin + threadIdx.x, warp = threadIdx.x / WARP;
    const bool visible = mine <= position && mine >= oldest;
    const E *page = (const E *)a.pool + a.step->pages[begin / PAGE] * a.page_elements + a.layer_offset + (size_t)kv_head * 2 * wide * PAGE;
    float score[G];
#pragma unroll
    for (int g = 0; g < G; g++) score[g] = 0.0f;
    if (visible) {
        const E *key = page + (size_t)(mine % PAGE) * 8;
#pragma unroll 4
        for (uint32_t c = 0; c < wide / 8; c++) {
            float k[8];
            load8(key + (size_t)c * PAGE * 8, k);
#pragma unroll
            for (int g = 0; g < G; g++) {
                if (g >= group) break;
                const float4 q0 = *(const float4 *)(q + g * wide + 8 * c), q1 = *(const float4 *)(q + g * wide + 8 * c + 4);
                score[g] = fmaf(q0.x, k[0], score[g]), score[g] = fmaf(q0.y, k[1], score[g]);
                score[g] = fmaf(q0.z, k[2], score[g]), score[g] = fmaf(q0.w, k[3], score[g]);
                score[g] = fmaf(q1.x, k[4], score[g]), score[g] = fmaf(q1.y, k[5], score[g]);
                score[g] = fmaf(q1.z, k[6], score[g]), score[g] = fmaf(q1.w, k[7], score[g]);
            }
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (g >= group) break;
        float s = score[g] * a.scale;
        if (a.softcap > 0.0f) s = a.softcap * tanhf(s / a.softcap);
        score[g] = visible ? s : -INFINITY;
        const float largest = warp_max(score[g]);
        if (threadIdx.x % WARP == 0) room[g * 4 + warp] = largest;
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (g >= group) break;
        const float *r = room + g * 4;
        const float largest = fmaxf(fmaxf(r[0], r[1]), fmaxf(r[2], r[3]));
        const float e = visible ? expf(score[g] - largest) : 0.0f;
        p[g * SPLIT + threadIdx.x] = e;
        const float sum = warp_sum(e);
        if (threadIdx.x % WARP == 0) room[4 * G + g * 4 + warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x < group) {
        const float *r = room + threadIdx.x * 4, *s = r + 4 * G;
        float *stats = partial_at(a, t, kv_head * group + threadIdx.x, split);
        stats[0] = fmaxf(fmaxf(r[0], r[1]), fmaxf(r[2], r[3]));
        stats[1] = (s[0] + s[1]) + (s[2] + s[3]);
    }

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
#pragma unroll 4
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
    // the shares of the ways are added in their order, a head at a time
    float *shares = room + 8 * G;  // (ways, wide)
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (g >= group) break;
        if (way < ways)
#pragma unroll
            for (int k = 0; k < 8; k++) shares[way * wide + 8 * c + k] = acc[g][k];
        __syncthreads();
        float *stats = partial_at(a, t, kv_head * group + g, split);
        for (uint32_t i = threadIdx.x; i < wide; i += blockDim.x) {
            float sum = 0.0f;
            for (uint32_t w = 0; w < ways; w++) sum += shares[w * wide + i];
            stats[2 + i] = sum;
        }
        __syncthreads();
    }
}

// The splits of a head, combined in their order.
__device__ __forceinline__ void combine(const Attend &a, uint32_t t, uint32_t h, uint32_t first, uint32_t last) {
    float largest = a.sinks ? a.sinks[h] : -INFINITY;
    for (uint32_t s = first; s <= last; s++) largest = fmaxf(largest, __ldcg(partial_at(a, t, h, s)));
    float sum = a.sinks ? expf(a.sinks[h] - largest) : 0.0f;
    for (uint32_t s = first; s <= last; s++) {
        const float *of = partial_at(a, t, h, s);
        sum = fmaf(__ldcg(of + 1), expf(__ldcg(of) - largest), sum);
    }
    float *to = a.out + (size_t)t * a.out_stride + h * a.head_dim;
    for (uint32_t i = threadIdx.x; i < a.head_dim; i += blockDim.x) {
        float v = 0.0f;
#pragma unroll 4
        for (uint32_t s = first; s <= last; s++) {
            const float *of = partial_at(a, t, h, s);
            v = fmaf(__ldcg(of + 2 + i), expf(__ldcg(of) - largest), v);
        }
        to[i] = v / sum;
    }
}

template <class E, int G>
__device__ __forceinline__ void attend(const Attend &a) {
    extern __shared__ __align__(16) float shared[];
    __shared__ uint32_t arrived;
    const uint32_t t = blockIdx.z, kv_head = blockIdx.x, group = a.n_heads / a.n_kv_heads;
    if (a.first_token + t >= a.step->n_tokens) return;
    const uint32_t position = a.step->position + a.first_token + t;
    const uint32_t oldest = a.window && position + 1 > a.window ? position + 1 - a.window : 0;
    const uint32_t first = oldest / SPLIT, last = position / SPLIT;
    if (first + blockIdx.y > last) return;
    const float *from = a.q + (size_t)t * a.q_stride + (size_t)kv_head * group * a.head_dim;
    for (uint32_t i = threadIdx.x; i < group * a.wide; i += blockDim.x)
        shared[i] = i % a.wide < a.head_dim ? from[i / a.wide * a.head_dim + i % a.wide] : 0.0f;
    __syncthreads();
    for (uint32_t split = first + blockIdx.y; split <= last; split += gridDim.y)
        attend_split<E, G>(a, split, kv_head, t, position, oldest, shared);

    // the block that comes last combines what all have left
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(a.arrived + t * a.n_kv_heads + kv_head, 1u);
    __syncthreads();
    const uint32_t blocks = min(gridDim.y, last - first + 1);
    if (arrived + 1 != blocks) return;
    __threadfence();
    for (uint32_t g = 0; g < group; g++) combine(a, t, kv_head * group + g, first, last);
    if (threadIdx.x == 0) a.arrived[t * a.n_kv_heads + kv_head] = 0;
}

#define INSTANCE(E, NAME, G) \
    extern "C" __global__ void __launch_bounds__(SPLIT) attend_##NAME##_##G(const __grid_constant__ Attend a) { attend<E, G>(a); }
INSTANCE(__half, f16, 1) INSTANCE(__half, f16, 4) INSTANCE(__half, f16, 8) INSTANCE(__half, f16, 16)
INSTANCE(float, f32, 1) INSTANCE(float, f32, 4) INSTANCE(float, f32, 8) INSTANCE(float, f32, 16)
