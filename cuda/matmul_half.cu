// Matrix times many vectors on Hopper's tensor cores, of weights that expand.cu has decoded: what long prompts are made of.
//
//   y[t][r] = epilogue( scales[t] * sum_c w[r][c] * x[t][c] + bias[r] )
//
// Shapes: w (row tiles * 128, cols) and x (tokens, cols) f16 in panels (matmul.cuh); y (n_tokens, rows) f32.
// A block computes 128 rows for N tokens. One lane has the copy engine bring weights and x, a panel of 64 columns a stage; two warpgroups
// multiply (wgmma, 64 rows each, f32 accumulators in registers). Blocks go from tile to tile, so that copies go on while results are stored.
// Bytes moved: w once for every N tokens, x once for every 128 rows, both from the second-level cache but for the first time.
// The sum's order depends on the columns alone: a token's bits are those of matmul_hopper.cu.
#include "products.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int N>
__device__ __forceinline__ void bring_tiles(const Matmul &a, const Shared &at) {
    typedef Shape<N> S;
    wait_for_inputs();
    const uint32_t n_tiles = count_tiles(a, N), panels = (a.cols + PANEL - 1) / PANEL;
    Ring<S::STAGES> ring;
    for (uint32_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        const Tile t = tile_at(a, tile, N);
        for (uint32_t panel = 0; panel < panels; panel++) {
            uint64_t *full = at.full + ring.stage;
            barrier_wait(at.empty + ring.stage, ring.phase ^ 1);
            barrier_expect(full, S::W_BYTES + S::X_BYTES);
            copy_range(at.w + ring.stage * S::W_BYTES, a.w + ((size_t)panel * a.w_rows + t.tile * TILE_M) * PANEL, S::W_BYTES, full);
            copy_range(at.x + ring.stage * S::X_BYTES, a.x + ((size_t)panel * a.x_rows + t.first) * PANEL, S::X_BYTES, full);
            ring.next();
        }
    }
}

template <int N>
__device__ __forceinline__ void matmul(const Matmul &a) {
    extern __shared__ u8 room[];
    __shared__ uint64_t barriers[2 * Shape<N>::STAGES];
    const Shared at = open_stages<N>(room, barriers, 1);
    let_next_start();
    if (threadIdx.x < WORKERS) {
        multiply_tiles<N, false>(a, at);
    } else if (threadIdx.x == WORKERS) {
        bring_tiles<N>(a, at);
    }
}

#define INSTANCE(N) \
    extern "C" __global__ void __launch_bounds__(WORKERS + WARP, 1) matmul_half_##N(const __grid_constant__ Matmul a) { matmul<N>(a); }
INSTANCE(128) INSTANCE(256)

#endif

// Code for other cards has this alone, so that there is something to load; the host looks for the others by name.
extern "C" __global__ void matmul_half() {}
