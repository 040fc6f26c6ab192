// Matrix times many vectors on Hopper's tensor cores, of matrices that are multiplied with a few hundred tokens or less, and of experts.
//
//   y[t][r] = epilogue( scales[t] * sum_c half(w[r][c]) * x[t][c] + bias[r] )
//
// Shapes: w (rows, cols) in planes; x (tokens, cols) f16 in panels (matmul.cuh); y (n_tokens, rows) f32.
// A block computes 128 rows for 128 tokens. Eight warps decode weights to f16 into shared memory and have the copy engine bring x, a panel of
// 64 columns a stage; two warpgroups multiply (wgmma, 64 rows each, f32 accumulators in registers). Decoding, about 5 instructions a weight,
// goes on under the products: a stage keeps the tensor cores busy for 512 cycles. Blocks go from tile to tile, so that weights are decoded
// ahead while results are stored.
// Bytes moved: the matrix once for every 128 tokens, from the second-level cache but for the first time; x once for every 128 rows.
// The sum's order depends on the columns alone: a token's bits are the same whatever other tokens are in the step, and those of matmul_half.cu.
#include "products.cuh"

#define TOKENS 128

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class F>
__device__ __forceinline__ void decode_tiles(const Matmul &a, const Shared &at) {
    typedef Chunk<F> C;
    typedef Shape<TOKENS> S;
    const uint32_t decoder = threadIdx.x - WORKERS, j = decoder % LANES, row = row_of_decoder<F>(decoder);
    const uint32_t units = a.cols / F::UNIT, chunks = (a.cols + PANEL * C::PANELS - 1) / (PANEL * C::PANELS);
    if (a.groups) wait_for_inputs();  // which weights are read is an input too
    const uint32_t n_tiles = count_tiles(a, TOKENS);

    uint32_t ahead = blockIdx.x, ahead_chunk = 0;
    Planes from;
    auto open = [&]() {
        if (ahead >= n_tiles) return;
        const Tile t = tile_at(a, ahead, TOKENS);
        from = row_of_tile<F>(a, t.segment, t.row0, t.expert, row);
    };
    auto fetch = [&](typename F::Raw(&raw)[C::UNITS]) {
        if (ahead >= n_tiles) return;
        load_chunk<F>(from, (LANES * ahead_chunk + j) * C::UNITS, units, raw);
        if (++ahead_chunk == chunks) {
            ahead_chunk = 0, ahead += gridDim.x;
            open();
        }
    };

    uint32_t now = blockIdx.x, now_chunk = 0, first = 0;
    Ring<S::STAGES> ring;
    // a stage, once it is free; the first decoder has x brought
    auto stage = [&](uint32_t panel) {
        barrier_wait(at.empty + ring.stage, ring.phase ^ 1);
        if (decoder == 0) {
            if (panel == 0) first = tile_at(a, now, TOKENS).first;
            barrier_expect(at.full + ring.stage, S::X_BYTES);
            copy_range(at.x + ring.stage * S::X_BYTES, a.x + ((size_t)panel * a.x_rows + first) * PANEL, S::X_BYTES, at.full + ring.stage);
        }
        const uint32_t which = ring.stage;
        ring.next();
        return which;
    };
    auto produce = [&](const typename F::Raw(&raw)[C::UNITS]) {
        uint32_t stages[C::PANELS];
        u8 *panels[C::PANELS];
#pragma unroll
        for (int p = 0; p < C::PANELS; p++) {
            stages[p] = stage(now_chunk * C::PANELS + p);
            panels[p] = at.w + stages[p] * S::W_BYTES;
        }
        decode_chunk<F>(raw, (LANES * now_chunk + j) * C::UNITS, units, row, j, panels);
        show_to_tensor_cores();
        __syncwarp();
        if (decoder % WARP == 0) {
#pragma unroll
            for (int p = 0; p < C::PANELS; p++) barrier_arrive(at.full + stages[p]);
        }
        if (++now_chunk == chunks) now_chunk = 0, now += gridDim.x;
    };

    typename F::Raw raw[C::AHEAD][C::UNITS];
    open();
#pragma unroll
    for (int i = 0; i < C::AHEAD; i++) fetch(raw[i]);
    wait_for_inputs();
    while (now < n_tiles) {
#pragma unroll
        for (int i = 0; i < C::AHEAD; i++) {
            if (now >= n_tiles) break;
            produce(raw[i]);
            fetch(raw[i]);
        }
    }
}

template <class F>
__device__ __forceinline__ void matmul(const Matmul &a) {
    extern __shared__ u8 room[];
    __shared__ uint64_t barriers[2 * Shape<TOKENS>::STAGES];
    const Shared at = open_stages<TOKENS>(room, barriers, DECODERS / WARP + 1);
    let_next_start();
    // of the launch's 128 registers each; asking for more than there are would wait for ever
    if (threadIdx.x < WORKERS) {
        give_registers<112>();
        multiply_tiles<TOKENS, true>(a, at);
    } else {
        take_registers<144>();
        decode_tiles<F>(a, at);
    }
}

#define INSTANCE(F) \
    extern "C" __global__ void __launch_bounds__(WORKERS + DECODERS, 1) matmul_hopper_##F(const __grid_constant__ Matmul a) { matmul<F>(a); }
FOR_EACH_TYPE(INSTANCE)

#endif

// Code for other cards has this alone, so that there is something to load; the host looks for the others by name.
extern "C" __global__ void matmul_hopper() {}
