// Brings a matrix from the file's blocks into planes; twin of `split` in src/device/cuda/layout.rs.
//
// One launch a plane: plane[row * row_bytes + block * pitch + i] = blocks[(row * blocks_a_row + block) * block_bytes + offset + i] for i < bytes.
// Each byte is read and written once.
#include "common.cuh"

// `Split` of src/device/cuda/args.rs.
struct Split {
    const u8 *blocks;
    u8 *plane;
    uint64_t n_blocks;
    uint32_t blocks_a_row, row_bytes, pitch;
    uint32_t block_bytes, offset, bytes;
};

extern "C" __global__ void split(const __grid_constant__ Split a) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x, n = a.n_blocks * a.bytes;
    for (uint64_t k = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; k < n; k += step) {
        const uint64_t block = k / a.bytes, i = k % a.bytes, row = block / a.blocks_a_row;
        a.plane[row * a.row_bytes + (block - row * a.blocks_a_row) * a.pitch + i] = a.blocks[block * a.block_bytes + a.offset + i];
    }
}
