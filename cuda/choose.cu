// The likeliest token of a row of logits: of equal ones the lower id; and whether any logit is NaN or positive infinity.
//
// Shapes: logits (n_vocab) f32; parts (CHOOSE_BLOCKS) of {logit, id, first bad id}; chosen {id, first bad id}. Bytes moved: the row once.
#include "common.cuh"

#define CHOOSE_BLOCKS 64u
#define NONE 0xffffffffu

struct Best {
    float logit;
    uint32_t id, bad;
};

__device__ __forceinline__ Best better(Best a, Best b) {
    const bool second = b.id != NONE && (a.id == NONE || b.logit > a.logit || (b.logit == a.logit && b.id < a.id));
    return {second ? b.logit : a.logit, second ? b.id : a.id, min(a.bad, b.bad)};
}

__device__ __forceinline__ Best block_best(Best b, Best *room) {
    for (int d = 16; d > 0; d /= 2) {
        const Best other = {__shfl_xor_sync(ALL, b.logit, d), __shfl_xor_sync(ALL, b.id, d), __shfl_xor_sync(ALL, b.bad, d)};
        b = better(b, other);
    }
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = b;
    __syncthreads();
    if (threadIdx.x == 0)
        for (uint32_t w = 1; w < blockDim.x / WARP; w++) b = better(b, room[w]);
    return b;
}

extern "C" __global__ void __launch_bounds__(256) choose_parts(const float *logits, uint32_t n_vocab, Best *parts) {
    let_next_start();
    wait_for_inputs();
    __shared__ Best room[8];
    Best b = {-INFINITY, NONE, NONE};
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n_vocab; i += gridDim.x * blockDim.x) {
        const float v = logits[i];
        const bool is_bad = isnan(v) || v == INFINITY;
        b = better(b, {v, v > -INFINITY && !is_bad ? i : NONE, is_bad ? i : NONE});
    }
    b = block_best(b, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = b;
}

extern "C" __global__ void __launch_bounds__(64) choose(const Best *parts, uint32_t *chosen) {
    let_next_start();
    wait_for_inputs();
    __shared__ Best room[2];
    const Best b = block_best(parts[threadIdx.x], room);
    if (threadIdx.x == 0) chosen[0] = b.id, chosen[1] = b.bad;
}
