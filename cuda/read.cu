// How fast the card reads its memory, for benches: every byte once, 16 bytes a load, nothing else.
//
// sink[0] is written where all of (n) words of 16 bytes come to one sum that they hardly do, so that the loads are not left out. Bytes moved: 16 n.
#include "common.cuh"

#define LOADS 8u

extern "C" __global__ void __launch_bounds__(512) read(const uint4 *from, uint64_t n, uint32_t *sink) {
    let_next_start();
    wait_for_inputs();
    uint32_t sum = 0;
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + (LOADS - 1) * stride < n; i += LOADS * stride) {
        uint4 v[LOADS];
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++) v[k] = __ldcs(from + i + k * stride);
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    for (; i < n; i += stride) {
        const uint4 v = from[i];
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x9e3779b9u) sink[0] = sum;
}
