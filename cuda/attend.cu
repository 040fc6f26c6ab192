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

// Eight neighbours of the pool, loaded first and widened when they are there.
template <class E>
struct Eight;

template <>
struct Eight<__half> {
    uint4 raw;
    __device__ __forceinline__ void load(const __half *from) { raw = *(const uint4 *)from; }
    __device__ __forceinline__ void widen(float *to) const {
        const uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 f = __half22float2(*(const __half2 *)&w[i]);
            to[2 * i] = f.x, to[2 * i + 1] = f.y;
        }
    }
};

template <>
struct Eight<float> {
    float4 a, b;
    __device__ __forceinline__ void load(const float *from) { a = *(const float4 *)from, b = *(const float4 *)(from + 4); }
    __device__ __forceinline__ void widen(float *to) const {
        to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
    }
};

// Where the partial result of a split lies.
__device__ __forceinline__ float *partial_at(const Attend &a, uint32_t t, uint32_t head, uint32_t split) {
    return a.partial + (((size_t)t * a.n_heads + head) * a.max_splits + split) * (a.wide + 2);
}

// One split of one key-value head for one token. Threads: SPLIT. Scores: a thread a position. Values: eight columns a thread, positions dealt
// out among the threads of the same columns.
template <class E, int G>
__device__ void attend_split(const Attend &a, uint32_t split, uint32_t kv_head, uint32_t t, uint32_t position, uint32_t oldest, bool alone, float *shared) {
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
        for (uint32_t c0 = 0; c0 < wide / 8; c0 += 8) {
            Eight<E> k8[8];  // asked for together
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (c0 + i < wide / 8) k8[i].load(key + (size_t)(c0 + i) * PAGE * 8);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (c0 + i >= wide / 8) break;
                float k[8];
                k8[i].widen(k);
#pragma unroll
                for (int g = 0; g < G; g++) {
                    if (g >= group) break;
                    const float *qg = q + g * wide + 8 * (c0 + i);
                    const float4 q0 = *(const float4 *)qg, q1 = *(const float4 *)(qg + 4);
                    score[g] = fmaf(q0.x, k[0], score[g]), score[g] = fmaf(q0.y, k[1], score[g]);
                    score[g] = fmaf(q0.z, k[2], score[g]), score[g] = fmaf(q0.w, k[3], score[g]);
                    score[g] = fmaf(q1.x, k[4], score[g]), score[g] = fmaf(q1.y, k[5], score[g]);
                    score[g] = fmaf(q1.z, k[6], score[g]), score[g] = fmaf(q1.w, k[7], score[g]);
                }
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
        for (uint32_t i0 = start + way; i0 < stop; i0 += 8 * ways) {
            Eight<E> v8[8];
#pragma unroll
            for (int k = 0; k < 8; k++)
                if (i0 + k * ways < stop) v8[k].load(value + (size_t)(i0 + k * ways) * wide);
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const uint32_t i = i0 + k * ways;
                if (i >= stop) break;
                float v[8];
                v8[k].widen(v);
#pragma unroll
                for (int g = 0; g < G; g++) {
                    if (g >= group) break;
                    const float e = p[g * SPLIT + i];
#pragma unroll
                    for (int n = 0; n < 8; n++) acc[g][n] = fmaf(e, v[n], acc[g][n]);
                }
            }
        }
    }
    // the shares of the ways are added in their order
    float *shares = room + 8 * G;  // (group, ways, wide)
#pragma unroll
    for (int g = 0; g < G; g++) {
        if (g >= group) break;
        if (way < ways)
#pragma unroll
            for (int n = 0; n < 8; n++) shares[(g * ways + way) * wide + 8 * c + n] = acc[g][n];
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < group * wide; i += blockDim.x) {
        const uint32_t g = i / wide, column = i % wide;
        float v = 0.0f;
        for (uint32_t w = 0; w < ways; w++) v += shares[(g * ways + w) * wide + column];
        const float *r = room + g * 4, *s = r + 4 * G;
        const float largest = fmaxf(fmaxf(r[0], r[1]), fmaxf(r[2], r[3])), sum = (s[0] + s[1]) + (s[2] + s[3]);
        const uint32_t h = kv_head * group + g;
        if (alone) {
            // as `combine` does with one split
            const float top = a.sinks ? fmaxf(a.sinks[h], largest) : largest, factor = expf(largest - top);
            const float all = fmaf(sum, factor, a.sinks ? expf(a.sinks[h] - top) : 0.0f);
            if (column < a.head_dim) a.out[(size_t)t * a.out_stride + h * a.head_dim + column] = v * factor / all;
        } else {
            float *stats = partial_at(a, t, h, split);
            stats[2 + column] = v;
            if (column == 0) stats[0] = largest, stats[1] = sum;
        }
    }
    __syncthreads();
}

// The splits of a head, combined in their order by one warp.
__device__ __forceinline__ void combine(const Attend &a, uint32_t t, uint32_t h, uint32_t first, uint32_t last) {
    const uint32_t lane = threadIdx.x % WARP;
    float largest = a.sinks ? a.sinks[h] : -INFINITY;
    for (uint32_t s = first + lane; s <= last; s += WARP) largest = fmaxf(largest, __ldcg(partial_at(a, t, h, s)));
    largest = warp_max(largest);
    float sum = a.sinks ? expf(a.sinks[h] - largest) : 0.0f;
    float *to = a.out + (size_t)t * a.out_stride + h * a.head_dim;
    for (uint32_t s = first; s <= last; s++) {
        const float *of = partial_at(a, t, h, s);
        sum = fmaf(__ldcg(of + 1), expf(__ldcg(of) - largest), sum);
    }
#pragma unroll 1
    for (uint32_t i0 = lane; i0 < a.head_dim; i0 += 4 * WARP) {
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 2
        for (uint32_t s = first; s <= last; s++) {
            const float *of = partial_at(a, t, h, s);
            const float factor = expf(__ldcg(of) - largest);
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (i0 + k * WARP < a.head_dim) v[k] = fmaf(__ldcg(of + 2 + i0 + k * WARP), factor, v[k]);
        }
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (i0 + k * WARP < a.head_dim) to[i0 + k * WARP] = v[k] / sum;
    }
}

template <class E, int G>
__device__ __forceinline__ void attend(const Attend &a) {
    let_next_start();
    wait_for_inputs();
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
        attend_split<E, G>(a, split, kv_head, t, position, oldest, first == last, shared);
    if (first == last) return;

    // the block that comes last combines what all have left
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(a.arrived + t * a.n_kv_heads + kv_head, 1u);
    __syncthreads();
    const uint32_t blocks = min(gridDim.y, last - first + 1);
    if (arrived + 1 != blocks) return;
    __threadfence();
    for (uint32_t g = threadIdx.x / WARP; g < group; g += SPLIT / WARP) combine(a, t, kv_head * group + g, first, last);
    if (threadIdx.x == 0) a.arrived[t * a.n_kv_heads + kv_head] = 0;
}

#define INSTANCE(E, NAME, G, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(SPLIT, BLOCKS) attend_##NAME##_##G(const __grid_constant__ Attend a) { attend<E, G>(a); }
INSTANCE(__half, f16, 1, 3) INSTANCE(__half, f16, 4, 3) INSTANCE(__half, f16, 8, 2) INSTANCE(__half, f16, 16, 2)
INSTANCE(float, f32, 1, 2) INSTANCE(float, f32, 4, 2) INSTANCE(float, f32, 8, 2) INSTANCE(float, f32, 16, 1)
