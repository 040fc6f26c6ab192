// What the kernels of many tokens' attention share: what they are told, and small pieces.
#pragma once
#include "tensor_core.cuh"

#define LOG2_E 1.4426950408889634f

struct AttendMany {
    const Step *step;
    const float *q;
    const u8 *pool;
    float *out;
    const float *sinks;  // (n_heads), or null
    uint64_t page_elements, layer_offset;
    uint32_t n_heads, n_kv_heads;
    uint32_t q_stride, out_stride;
    uint32_t window;
    float scale, softcap;
    uint32_t half_rows;
    __half *half_out;  // of attend_hopper alone: where results go instead of `out`, in panels of half_rows (matmul.cuh); or null
};

__device__ __forceinline__ void copy16(__half *to, const __half *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
}

__device__ __forceinline__ uint32_t pack(float a, float b) {
    const __half2 h = __floats2half2_rn(a, b);
    return *(const uint32_t *)&h;
}

__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
