// Weights to f16, for matmul_half.cu: a matrix, or some of its rows, decoded once for all the tokens of a step.
//
//   w[tile * 128 + r][c] = half(weight of row r of the tile, column c), in panels (matmul.cuh), zeros beyond the columns
//
// Grid (row_tiles, a share of the panels each), 256 threads, shared memory for a panel or two; a block decodes panels of its tile into shared memory and stores them whole.
// Bytes moved: the matrix once; two a weight written.
#include "matmul.cuh"

template <class F>
__device__ __forceinline__ void expand(const Matmul &a) {
    typedef Chunk<F> C;
    extern __shared__ __align__(128) u8 stage[];
    constexpr int BYTES = TILE_M * PANEL * 2;
    const uint32_t j = threadIdx.x % LANES, row = row_of_decoder<F>(threadIdx.x);
    const uint32_t units = a.cols / F::UNIT, chunks = (a.cols + PANEL * C::PANELS - 1) / (PANEL * C::PANELS);
    uint32_t segment, row0;
    locate(a, a.first_tile + blockIdx.x, segment, row0);
    const Planes from = row_of_tile<F>(a, segment, row0, 0, row);
    u8 *panels[C::PANELS];
#pragma unroll
    for (int p = 0; p < C::PANELS; p++) panels[p] = stage + p * BYTES;
    typename F::Raw raw[C::UNITS];
    let_next_start();
    if (blockIdx.y < chunks) load_chunk<F>(from, (LANES * blockIdx.y + j) * C::UNITS, units, raw);
    wait_for_inputs();  // the product before may still read what is written here
    for (uint32_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
        decode_chunk<F>(raw, (LANES * chunk + j) * C::UNITS, units, row, j, panels);
        __syncthreads();
        if (chunk + gridDim.y < chunks) load_chunk<F>(from, (LANES * (chunk + gridDim.y) + j) * C::UNITS, units, raw);
#pragma unroll
        for (int p = 0; p < C::PANELS; p++) {
            uint4 *to = (uint4 *)(a.w + ((size_t)(chunk * C::PANELS + p) * a.w_rows + blockIdx.x * TILE_M) * PANEL);
#pragma unroll
            for (int i = 0; i < TILE_M * PANEL / 8 / DECODERS; i++) to[threadIdx.x + i * DECODERS] = ((const uint4 *)panels[p])[threadIdx.x + i * DECODERS];
        }
        __syncthreads();
    }
}

#define INSTANCE(F) \
    extern "C" __global__ void __launch_bounds__(DECODERS) expand_##F(const __grid_constant__ Matmul a) { expand<F>(a); }
FOR_EACH_TYPE(INSTANCE)
