// Matrix times many vectors on Hopper's tensor cores: what a prompt is made of there; the formula of matmul.cu.
//
//   y[t][r] = epilogue( scales[t] * sum_c half(w[r][c]) * x[t][c] + bias[r] )
//
// Shapes: w (rows, cols) in planes; x (tokens, cols) f16 in panels (matmul.cuh); y (n_tokens, rows) f32.
// A block computes 128 rows for N tokens. Four or eight warps decode weights to f16 into shared memory and have the copy engine bring x, a
// panel of 64 columns a stage; two warpgroups multiply (wgmma, 64 rows each, f32 accumulators in registers). The decoding, about 5
// instructions a weight, goes on under the products: a stage of 256 tokens keeps the tensor cores busy for 1024 cycles, each scheduler for 340.
// Blocks go from tile to tile, so that weights are decoded ahead while results are stored.
// In pairs, eight rows of the first segment lie beside the same eight of the second, so that one warp holds both.
// Bytes moved: the matrix once for every N tokens, from the second-level cache but for the first time; x once for every 128 rows.
// The sum's order depends on the columns alone: a token's bits are the same whatever other tokens are in the step, and for every N.
#include "hopper.cuh"
#include "matmul.cuh"

#define WORKERS 256    // two warpgroups that multiply
#define ROOM_PITCH 20  // floats from one token's sums to the next one's, in a warp's room: no bank conflicts
#define ROOM_TOKENS 32

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int N>
struct Shape {
    static constexpr int STAGES = N == 256 ? 4 : 6;
    static constexpr int W_BYTES = TILE_M * PANEL * 2, X_BYTES = N * PANEL * 2;
    // a wide tile's sums leave registers for one decoder a row, a narrow one needs weights twice as often
    static constexpr int LANES = N == 256 ? 1 : 2, DECODERS = LANES * TILE_M;
    // together what the launch gives a block: 384 times 168, 512 times 128; asking for more would wait for ever
    static constexpr int WORKER_REGISTERS = N == 256 ? 184 : 112, DECODER_REGISTERS = N == 256 ? 136 : 144;
};

// What a decoder takes at once: units of one row, in one panel or two.
template <class F, int N>
struct Chunk {
    static constexpr int PANELS = F::PAD == 7 ? 2 : 1;
    static constexpr int UNITS = PANELS * PANEL / F::UNIT / Shape<N>::LANES;
    static constexpr int WORDS = UNITS * sizeof(typename F::Raw) / 4;
    static constexpr int AHEAD = WORDS <= 16 ? 3 : WORDS <= 24 ? 2 : 1;  // chunks on their way, in registers
};

// Goes round the stages; the phase says which time it is.
template <int STAGES>
struct Ring {
    uint32_t stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

struct Shared {
    u8 *w, *x;
    float *room;
    uint64_t *full, *empty;
};

// A decoder's row in the tile: such that eight lanes store to all eight banks of 16 bytes, whichever pieces their units' columns are.
template <class F, int LANES>
__device__ __forceinline__ uint32_t row_of_decoder(uint32_t decoder) {
    const uint32_t r = decoder / LANES;
    return LANES == 1 || F::PAD == 5 ? r : (r & ~6u) | (r & 2) << 1 | (r & 4) >> 1;
}

template <class F, int N>
__device__ __forceinline__ void decode_tiles(const Matmul &a, const Shared &at) {
    typedef Chunk<F, N> C;
    typedef Shape<N> S;
    const uint32_t decoder = threadIdx.x - WORKERS, j = decoder % S::LANES, row = row_of_decoder<F, S::LANES>(decoder);
    const bool pairs = a.epilogue == GATED;
    const uint32_t units = a.cols / F::UNIT, chunks = (a.cols + PANEL * C::PANELS - 1) / (PANEL * C::PANELS);
    if (a.groups) wait_for_inputs();  // which weights are read is an input too
    const uint32_t n_tiles = count_tiles(a, N);

    uint32_t ahead = blockIdx.x, ahead_chunk = 0;
    Planes from;
    auto open = [&]() {
        if (ahead >= n_tiles) return;
        const Tile t = tile_at(a, ahead, N);
        const Segment &s = a.segments[pairs ? row % 16 / 8 : t.segment];
        const uint32_t mine = t.row0 + (pairs ? row / 16 * 8 + row % 8 : row);
        from = row_of<F>(s.weights, (size_t)t.expert * s.rows + min(mine, s.rows - 1));
    };
    auto fetch = [&](typename F::Raw(&raw)[C::UNITS]) {
        if (ahead >= n_tiles) return;
#pragma unroll
        for (int i = 0; i < C::UNITS; i++) raw[i] = F::load(from, min((S::LANES * ahead_chunk + j) * C::UNITS + i, units - 1));
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
            if (panel == 0) first = tile_at(a, now, N).first;
            barrier_expect(at.full + ring.stage, S::X_BYTES);
            copy_range(at.x + ring.stage * S::X_BYTES, a.x + ((size_t)panel * a.x_rows + first) * PANEL, S::X_BYTES, at.full + ring.stage);
        }
        const uint32_t which = ring.stage;
        ring.next();
        return which;
    };
    auto produce = [&](const typename F::Raw(&raw)[C::UNITS]) {
        uint32_t stages[C::PANELS];
#pragma unroll
        for (int p = 0; p < C::PANELS; p++) stages[p] = stage(now_chunk * C::PANELS + p);
#pragma unroll
        for (int i = 0; i < C::UNITS; i++) {
            const bool there = (S::LANES * now_chunk + j) * C::UNITS + i < units;
            const int column = F::column(j * C::UNITS + i);
            float w[F::UNIT];
            F::decode(raw[i], w);
#pragma unroll
            for (int k = 0; k < F::UNIT; k += 8) {
                uint4 v;
                __half2 *h = (__half2 *)&v;
#pragma unroll
                for (int n = 0; n < 4; n++) h[n] = there ? __floats2half2_rn(w[k + 2 * n], w[k + 2 * n + 1]) : __half2half2(__half(0.0f));
                const uint32_t to = stages[C::PANELS == 2 ? F::offset(k) / PANEL : 0];
                const uint32_t piece = (column + F::offset(k)) % PANEL / 8;
                *(uint4 *)(at.w + to * S::W_BYTES + row * PANEL * 2 + (piece ^ row % 8) * 16) = v;
            }
        }
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

// What becomes of a tile's sums. A warp turns 32 tokens at a time round in its room, so that neighbouring lanes store neighbouring rows.
// Sums are added by the memory: each value once a launch, so that there is one order.
template <int N>
__device__ __forceinline__ void store_tile(const Matmul &a, const Tile &t, const float (&sums)[N / 2], float *room) {
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const bool pairs = a.epilogue == GATED;
    const uint32_t width = pairs ? 8 : 16, mine = lane % width;
    const Segment &s = a.segments[t.segment];
    const uint32_t row = t.row0 + width * warp + mine;
    const bool there = row < s.rows;
    const float bias = there ? bias_of(s, t.expert, row) : 0.0f, up_bias = there && pairs ? bias_of(a.segments[1], t.expert, row) : 0.0f;
    float scales[N / ROOM_TOKENS];
    uint32_t orders[N / ROOM_TOKENS];
#pragma unroll
    for (int c = 0; c < N / ROOM_TOKENS; c++) {
        const uint32_t token = c * ROOM_TOKENS + lane, of = t.first + (token < t.count ? token : 0);
        scales[c] = a.scales[of];
        orders[c] = a.order ? a.order[of] : of;
    }
#pragma unroll
    for (int c = 0; c < N / ROOM_TOKENS; c++) {
        if (c * ROOM_TOKENS >= t.count) break;
        // sum i of 8 tokens: row lane / 4 + 8 (i / 2), token 2 (lane % 4) + i % 2
#pragma unroll
        for (int n = 0; n < ROOM_TOKENS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                room[(8 * n + 2 * (lane % 4) + i % 2) * ROOM_PITCH + lane / 4 + 8 * (i / 2)] = sums[(c * ROOM_TOKENS / 8 + n) * 4 + i];
        __syncwarp();
#pragma unroll 4
        for (uint32_t token = lane / width; token < ROOM_TOKENS; token += WARP / width) {
            const float scale = __shfl_sync(ALL, scales[c], token);
            const uint32_t order = __shfl_sync(ALL, orders[c], token);
            if (!there || c * ROOM_TOKENS + token >= t.count) continue;
            float up = 0.0f;
            if (pairs) up = room[token * ROOM_PITCH + 8 + mine] * scale + up_bias;
            const float y = finish(a, room[token * ROOM_PITCH + mine] * scale + bias, up);
            float *to = s.out + (size_t)order * s.out_stride + row;
            if (a.epilogue == ADD) {
                asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(y) : "memory");
            } else {
                *to = y;
            }
        }
        __syncwarp();
    }
}

template <int N>
__device__ __forceinline__ void multiply_tiles(const Matmul &a, const Shared &at) {
    typedef Shape<N> S;
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t panels = (a.cols + PANEL - 1) / PANEL;
    const u8 *w = at.w + threadIdx.x / 128 * (64 * PANEL * 2);
    wait_for_inputs();
    const uint32_t n_tiles = count_tiles(a, N);
    Ring<S::STAGES> ring;
    for (uint32_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        float sums[N / 2];
        uint32_t before = 0;
        for (uint32_t panel = 0; panel < panels; panel++) {
            barrier_wait(at.full + ring.stage, ring.phase);
            const uint64_t of_w = descriptor(w + ring.stage * S::W_BYTES), of_x = descriptor(at.x + ring.stage * S::X_BYTES);
            products_begin();
#pragma unroll
            for (int k = 0; k < PANEL / 16; k++) product(sums, of_w + 2 * k, of_x + 2 * k, panel > 0 || k > 0);
            products_commit();
            products_wait<1>();
            if (panel > 0 && lane == 0) barrier_arrive(at.empty + before);
            before = ring.stage;
            ring.next();
        }
        products_wait<0>();
        if (lane == 0) barrier_arrive(at.empty + before);
        store_tile<N>(a, tile_at(a, tile, N), sums, at.room + warp * ROOM_TOKENS * ROOM_PITCH);
    }
}

template <class F, int N>
__device__ __forceinline__ void matmul(const Matmul &a) {
    typedef Shape<N> S;
    extern __shared__ u8 unaligned[];
    __shared__ uint64_t barriers[2 * S::STAGES];
    u8 *base = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
    Shared at = {base, base + S::STAGES * S::W_BYTES, (float *)(base + S::STAGES * (S::W_BYTES + S::X_BYTES)), barriers, barriers + S::STAGES};
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            barrier_init(at.full + s, S::DECODERS / WARP + 1);
            barrier_init(at.empty + s, WORKERS / WARP);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        show_to_tensor_cores();
    }
    __syncthreads();
    let_next_start();
    if (threadIdx.x < WORKERS) {
        if constexpr (N == 256) take_registers<S::WORKER_REGISTERS>();
        else give_registers<S::WORKER_REGISTERS>();
        multiply_tiles<N>(a, at);
    } else {
        if constexpr (N == 256) give_registers<S::DECODER_REGISTERS>();
        else take_registers<S::DECODER_REGISTERS>();
        decode_tiles<F, N>(a, at);
    }
}

#define INSTANCE(F, N) \
    extern "C" __global__ void __launch_bounds__(WORKERS + Shape<N>::DECODERS, 1) matmul_hopper_##F##_##N(const __grid_constant__ Matmul a) { matmul<F, N>(a); }
#define INSTANCES(F) INSTANCE(F, 128) INSTANCE(F, 256)
FOR_EACH_TYPE(INSTANCES)

#endif

// Code for other cards has this alone, so that there is something to load; the host looks for the others by name.
extern "C" __global__ void matmul_hopper() {}
