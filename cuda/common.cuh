// What every kernel uses: reductions in a fixed order, activations, and the step that the host describes in device memory.
//
// All sums here have one order, which depends on nothing but the shape: the same inputs give the same bits, whatever else runs.
// Files are compiled with -fmad=false: where a multiply and an add are one operation, the code says fmaf.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef unsigned char u8;

#define WARP 32u
#define ALL 0xffffffffu

// Positions that a page of the KV pool holds; PAGE_TOKENS of src/device/mod.rs.
#define PAGE 256u

// What one step works on; written by the host before each step, read by the kernels, so that a captured graph never changes.
// `StepHeader` of src/device/cuda/args.rs.
struct Step {
    uint32_t position;  // of the first token
    uint32_t n_tokens;
    const uint32_t *tokens;  // (n_tokens)
    const uint32_t *pages;   // page of position p: pages[p / PAGE]
};

// Programmatic dependent launch: a kernel may start while the one before it ends. Everything before `wait_for_inputs` may read weights only,
// and what was there before the step: its header, which a copy brings that waits for all before it, and keys and values of earlier steps;
// `let_next_start` says that the next kernel may take the multiprocessors that become free. Cards before Hopper know neither, and kernels
// built for them are launched one after another.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(ALL, v, d);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(ALL, v, d));
    return v;
}

// The sum of one value of each thread of a block of at most 1024; `room` holds 32 floats. Every thread gets it.
__device__ __forceinline__ float block_sum(float v, float *room) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    float w = threadIdx.x % WARP < blockDim.x / WARP ? room[threadIdx.x % WARP] : 0.0f;
    return warp_sum(w);
}

__device__ __forceinline__ float block_max(float v, float *room) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    float w = threadIdx.x % WARP < blockDim.x / WARP ? room[threadIdx.x % WARP] : -INFINITY;
    return warp_max(w);
}

// `norm_kind` of src/device/cuda/args.rs.
enum NormKind : uint32_t { NORM_NONE = 0, NORM_RMS = 1, NORM_LAYER = 2 };

// `epilogue` of src/device/cuda/args.rs: y is set, added, activation(segment 0, segment 1), or activation(y).
enum Epilogue : uint32_t { SET = 0, ADD = 1, GATED = 2, PLAIN = 3 };

// `activation` of src/device/cuda/project.rs.
enum Activation : uint32_t { SILU = 0, GELU_TANH = 1, SWIGLU_CLAMPED = 2, GELU_ERF = 3 };

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Hendrycks & Gimpel 2016, the approximation).
__device__ __forceinline__ float gelu_tanh(float x) {
    float inner = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanhf(inner));
}

__device__ __forceinline__ float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

// gpt-oss: gate at most `limit`, up within ±limit; gate * sigmoid(alpha * gate) * (up + 1).
__device__ __forceinline__ float swiglu_clamped(float gate, float up, float alpha, float limit) {
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return gate / (1.0f + expf(-alpha * gate)) * (up + 1.0f);
}

__device__ __forceinline__ float activate(uint32_t kind, float x) {
    switch (kind) {
        case SILU: return silu(x);
        case GELU_TANH: return gelu_tanh(x);
        default: return gelu_erf(x);
    }
}

__device__ __forceinline__ float gated(uint32_t kind, float gate, float up, float alpha, float limit) {
    return kind == SWIGLU_CLAMPED ? swiglu_clamped(gate, up, alpha, limit) : activate(kind, gate) * up;
}
