// Per-head norms and rotation of queries and keys, and the append of keys and values to their pages.
//
// rope (Su et al. 2021): pair (a, b) of a head turns by position * frequency[pair]: (a cos - b sin, a sin + b cos), both times `magnitude`.
// Angles are f32 products, as the models were trained with.
// Shapes: q (n_tokens, q_stride) with n_heads heads, k and v (n_tokens, kv_stride) with n_kv_heads heads, f32.
// Page layout of a layer: for each key-value head, keys as (wide / 8, PAGE, 8), then values as (PAGE, wide); wide = head_dim rounded up to 8.
// Grid (n_heads + 2 n_kv_heads, n_tokens): one block a head.
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

__device__ __forceinline__ void store(__half *to, float v) { *to = __float2half_rn(v); }
__device__ __forceinline__ void store(float *to, float v) { *to = v; }

// Keys are written back too, for traces.
template <class E>
__device__ __forceinline__ void rope_append(const Rope &a) {
    let_next_start();
    wait_for_inputs();
    extern __shared__ float head[];  // (head_dim)
    __shared__ float room[32];
    const uint32_t t = blockIdx.y, part = blockIdx.x, position = a.step->position + t;
    if (t >= a.step->n_tokens) return;
    const bool is_q = part < a.n_heads, is_k = !is_q && part < a.n_heads + a.n_kv_heads;
    const uint32_t h = is_q ? part : (part - a.n_heads) % a.n_kv_heads;
    const float *from = is_q ? a.q + (size_t)t * a.q_stride : (is_k ? a.k : a.v) + (size_t)t * a.kv_stride;
    from += h * a.head_dim;
    for (uint32_t i = threadIdx.x; i < a.head_dim; i += blockDim.x) head[i] = from[i];
    __syncthreads();
    const float *weight = is_q ? a.q_norm : is_k ? a.k_norm : nullptr;
    if (weight) {
        float squares = 0.0f;
        for (uint32_t i = threadIdx.x; i < a.head_dim; i += blockDim.x) squares = fmaf(head[i], head[i], squares);
        const float factor = 1.0f / sqrtf(block_sum(squares, room) / (float)a.head_dim + a.eps);
        for (uint32_t i = threadIdx.x; i < a.head_dim; i += blockDim.x) head[i] = head[i] * factor * weight[i];
        __syncthreads();
    }
    if (a.frequencies && (is_q || is_k)) {
        for (uint32_t i = threadIdx.x; i < a.dims / 2; i += blockDim.x) {
            const float angle = (float)position * a.frequencies[i];
            float sine, cosine;
            sincosf(angle, &sine, &cosine);
            const float s = sine * a.magnitude, c = cosine * a.magnitude;
            const uint32_t i0 = a.halves ? i : 2 * i, i1 = a.halves ? i + a.dims / 2 : 2 * i + 1;
            const float x = head[i0], y = head[i1];
            head[i0] = x * c - y * s;
            head[i1] = x * s + y * c;
        }
        __syncthreads();
    }
    if (is_q || is_k) {
        float *to = (is_q ? a.q + (size_t)t * a.q_stride : a.k + (size_t)t * a.kv_stride) + h * a.head_dim;
        for (uint32_t i = threadIdx.x; i < a.head_dim; i += blockDim.x) to[i] = head[i];
    }
    if (is_q) return;
    E *page = (E *)a.pool + a.step->pages[position / PAGE] * a.page_elements + a.layer_offset + (size_t)h * 2 * a.wide * PAGE;
    const uint32_t slot = position % PAGE;
    for (uint32_t i = threadIdx.x; i < a.wide; i += blockDim.x) {
        const float v = i < a.head_dim ? head[i] : 0.0f;
        store(page + (is_k ? (i / 8 * PAGE + slot) * 8 + i % 8 : (size_t)a.wide * PAGE + slot * a.wide + i), v);
    }
}

extern "C" __global__ void rope_append_f16(const __grid_constant__ Rope a) { rope_append<__half>(a); }
extern "C" __global__ void rope_append_f32(const __grid_constant__ Rope a) { rope_append<float>(a); }
