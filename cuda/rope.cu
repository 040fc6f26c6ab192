// Per-head norms and rotation of queries and keys, and the append of keys and values to their pages, for steps of several tokens; attend.cu
// does it itself where there is one.
//
// Shapes: q (n_tokens, q_stride) with n_heads heads, k and v (n_tokens, kv_stride) with n_kv_heads heads, f32; pages as rope.cuh tells.
// Bytes moved: every head read once, queries and keys written, keys and values stored.
// Grid (ceil((n_heads + 2 n_kv_heads) / 4), n_tokens): a warp a head, queries, keys, then values.
#include "rope.cuh"

// Keys are written back too, for traces.
template <class E>
__device__ __forceinline__ void rope_append(const Rope &a) {
    let_next_start();
    extern __shared__ __align__(16) float shared[];  // (dims / 2) angles, then (warps, head_dim)
    const uint32_t t = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const uint32_t part = blockIdx.x * warps + warp, position = __ldcg(&a.step->position) + t;
    if (t >= __ldcg(&a.step->n_tokens)) return;
    float2 *angles = (float2 *)shared;
    float *head = shared + a.dims + warp * a.head_dim;
    find_angles(a, position, first_frequency(a), angles);
    wait_for_inputs();
    __syncthreads();
    if (part >= a.n_heads + 2 * a.n_kv_heads) return;
    const bool is_q = part < a.n_heads, is_k = !is_q && part < a.n_heads + a.n_kv_heads;
    const uint32_t h = is_q ? part : (part - a.n_heads) % a.n_kv_heads;
    const float *from = is_q ? a.q + (size_t)t * a.q_stride : (is_k ? a.k : a.v) + (size_t)t * a.kv_stride;
    from += h * a.head_dim;
    for (uint32_t i = lane; i < a.head_dim; i += WARP) head[i] = from[i];
    __syncwarp();
    if (is_q || is_k) {
        turn_head(a, head, is_q ? a.q_norm : a.k_norm, angles);
        float *to = (is_q ? a.q + (size_t)t * a.q_stride : a.k + (size_t)t * a.kv_stride) + h * a.head_dim;
        for (uint32_t i = lane; i < a.head_dim; i += WARP) to[i] = head[i];
    }
    if (is_q) return;
    const uint32_t elements = part_elements<E>(a.wide);
    E *page = (E *)a.pool + a.step->pages[position / PAGE] * a.page_elements + a.layer_offset + (size_t)h * 2 * elements;
    store_head<E>(a, head, is_k, is_k ? page : page + elements, position % PAGE, nullptr);
}

extern "C" __global__ void __launch_bounds__(128) rope_append_f16(const __grid_constant__ Rope a) { rope_append<__half>(a); }
extern "C" __global__ void __launch_bounds__(128) rope_append_f32(const __grid_constant__ Rope a) { rope_append<float>(a); }
extern "C" __global__ void __launch_bounds__(128) rope_append_q8_0(const __grid_constant__ Rope a) { rope_append<int8_t>(a); }
