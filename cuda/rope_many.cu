// Norms a head, rotation and append to the pages, of a prompt: the same formulas, shapes and page layout as rope.cu tells.
//
// Bytes moved: queries, keys and values once read; queries, keys and their pages once written. One block a token: its sines and cosines are
// computed once for all heads. A warp takes a head, a lane four values or, of heads wider than 128, eight, so that accesses are of 16 bytes.
// head_dim is a multiple of 4 and at most 256; dims is one of 8 where pairs are halves, else one of 4.
// Grid (n_tokens), 256 threads.
#include "rope.cuh"

#define HEAD_MAX 256u
#define THREADS 256u

__device__ __forceinline__ void store4(__half *to, const float (&v)[4]) {
    const __half2 a = __floats2half2_rn(v[0], v[1]), b = __floats2half2_rn(v[2], v[3]);
    *(uint2 *)to = make_uint2(*(const uint32_t *)&a, *(const uint32_t *)&b);
}

__device__ __forceinline__ void store4(float *to, const float (&v)[4]) { *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]); }

__device__ __forceinline__ void load4(const float *from, float (&v)[4]) {
    const float4 of = *(const float4 *)from;
    v[0] = of.x, v[1] = of.y, v[2] = of.z, v[3] = of.w;
}

// Four values of a head from column c on, normalised.
__device__ __forceinline__ void scale4(float (&v)[4], const float *weight, float factor, uint32_t c) {
    float w[4];
    load4(weight + c, w);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = v[i] * factor * w[i];
}

// QUADS: fours of values a lane. Keys are written back too, for traces.
template <class E, int QUADS>
__device__ __forceinline__ void append_head(const Rope &a, uint32_t part, const float *sines, const float *cosines, uint32_t position) {
    const uint32_t t = blockIdx.x, lane = threadIdx.x % WARP;
    const bool is_q = part < a.n_heads, is_k = !is_q && part < a.n_heads + a.n_kv_heads;
    const uint32_t h = is_q ? part : (part - a.n_heads) % a.n_kv_heads;
    const float *from = (is_q ? a.q + (size_t)t * a.q_stride : (is_k ? a.k : a.v) + (size_t)t * a.kv_stride) + h * a.head_dim;
    const float *weight = is_q ? a.q_norm : is_k ? a.k_norm : nullptr;
    const bool turns = a.frequencies && (is_q || is_k);
    const uint32_t half = a.dims / 2;
    float x[QUADS][4] = {}, other[QUADS][4] = {};  // other: what halves are paired with
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const uint32_t c = 4 * (lane + WARP * i);
        if (c >= a.head_dim) continue;
        load4(from + c, x[i]);
        if (turns && a.halves && c < a.dims) load4(from + (c < half ? c + half : c - half), other[i]);
    }
    if (weight) {
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < QUADS; i++)
#pragma unroll
            for (int k = 0; k < 4; k++) squares = fmaf(x[i][k], x[i][k], squares);
        const float factor = 1.0f / sqrtf(warp_sum(squares) / (float)a.head_dim + a.eps);
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            const uint32_t c = 4 * (lane + WARP * i);
            if (c >= a.head_dim) continue;
            scale4(x[i], weight, factor, c);
            if (turns && a.halves && c < a.dims) scale4(other[i], weight, factor, c < half ? c + half : c - half);
        }
    }
    __syncwarp();  // all of the head is read before any of it is written
    E *page = (E *)a.pool + a.step->pages[position / PAGE] * a.page_elements + a.layer_offset + (size_t)h * 2 * a.wide * PAGE;
    const uint32_t slot = position % PAGE;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        const uint32_t c = 4 * (lane + WARP * i);
        if (turns && c < a.dims) {
            if (a.halves) {
                float s[4], co[4];
                load4(sines + c % half, s), load4(cosines + c % half, co);
#pragma unroll
                for (int k = 0; k < 4; k++) x[i][k] = c < half ? x[i][k] * co[k] - other[i][k] * s[k] : other[i][k] * s[k] + x[i][k] * co[k];
            } else {
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    const float s = sines[(c + k) / 2], co = cosines[(c + k) / 2], first = x[i][k], second = x[i][k + 1];
                    x[i][k] = first * co - second * s;
                    x[i][k + 1] = first * s + second * co;
                }
            }
        }
        if (c < a.head_dim && (is_q || is_k)) store4((is_q ? a.q + (size_t)t * a.q_stride : a.k + (size_t)t * a.kv_stride) + h * a.head_dim + c, x[i]);
        if (c < a.wide && !is_q) store4(page + (is_k ? (c / 8 * PAGE + slot) * 8 + c % 8 : (size_t)a.wide * PAGE + slot * a.wide + c), x[i]);
    }
}

template <class E>
__device__ __forceinline__ void rope_many(const Rope &a) {
    __shared__ __align__(16) float sines[HEAD_MAX / 2], cosines[HEAD_MAX / 2];
    let_next_start();
    wait_for_inputs();
    if (blockIdx.x >= a.step->n_tokens) return;
    const uint32_t position = a.step->position + blockIdx.x;
    if (a.frequencies) {
        for (uint32_t i = threadIdx.x; i < a.dims / 2; i += THREADS) {
            float sine, cosine;
            sincosf((float)position * a.frequencies[i], &sine, &cosine);
            sines[i] = sine * a.magnitude, cosines[i] = cosine * a.magnitude;
        }
        __syncthreads();
    }
    const uint32_t parts = a.n_heads + 2 * a.n_kv_heads;
    for (uint32_t part = threadIdx.x / WARP; part < parts; part += THREADS / WARP) {
        if (a.head_dim <= 128) {
            append_head<E, 1>(a, part, sines, cosines, position);
        } else {
            append_head<E, 2>(a, part, sines, cosines, position);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) rope_many_f16(const __grid_constant__ Rope a) { rope_many<__half>(a); }
extern "C" __global__ void __launch_bounds__(THREADS) rope_many_f32(const __grid_constant__ Rope a) { rope_many<float>(a); }
