// Brings a matrix from the file's blocks into planes; twin of `split` in src/device/cuda/layout.rs.
//
// One launch a plane: plane[block * pitch + i] = blocks[block * block_bytes + offset + i] for i < bytes. Each byte is read and written once.
#include "common.cuh"

extern "C" __global__ void split(const u8 *blocks, u8 *plane, uint64_t n_blocks, uint32_t block_bytes, uint32_t offset, uint32_t bytes, uint32_t pitch) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x, n = n_blocks * bytes;
    for (uint64_t k = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; k < n; k += step) {
        const uint64_t block = k / bytes, i = k % bytes;
        plane[block * pitch + i] = blocks[block * block_bytes + offset + i];
    }
}
