// What the products of many vectors share: arguments, how activations lie, tiles, and what becomes of a sum.
//
// Activations lie in panels (panels.cuh). Of experts, the rows are those of the slots (a token and one of its experts), sorted by expert; each
// expert's first row is a multiple of 8.
#pragma once
#include "panels.cuh"
#include "quant.cuh"

#define TILE_M 128  // rows of weights that a block works on

// A row that fills an expert's rows up.
#define NOBODY 0xffffffffu

// What the card alone knows of a step's slots.
struct Groups {
    uint32_t n_tiles;
    uint32_t n_rows;  // sorted, with what each expert's rows are filled up with
};

// Rows that go through one expert.
struct ExpertTile {
    uint32_t expert, first, count, end;
};

// `Matmul` of src/device/cuda/args.rs.
struct Matmul {
    Segment segments[3];
    uint32_t n_segments;
    uint32_t cols;        // padded
    const __half *x;      // in panels
    const float *scales;  // of the rows; null: all are x_scale
    uint32_t x_rows;      // that a panel holds
    uint32_t n_tokens;
    uint32_t epilogue;
    uint32_t activation;
    float alpha, limit;
    float scale;
    float softcap;
    const Groups *groups;     // of experts, or null
    const ExpertTile *tiles;  // of experts
    const uint32_t *order;    // which of the results a row's is; null: the one of its number
    __half *w;                // rows of tiles one after another, in panels of w_rows; or null, where the product decodes weights itself
    __half *half_out;         // where pairs go instead of `out`, divided by half_scale, in panels of half_rows; or null
    uint32_t half_rows;
    float half_scale;
    float x_scale;
    uint32_t w_rows;
    uint32_t first_tile, row_tiles;  // of all segments' tiles of TILE_M rows those that are multiplied; in pairs half as many of each
};

// Some rows of one segment times some rows of x.
struct Tile {
    uint32_t tile, segment, row0, expert, first, count;
};

__device__ __forceinline__ uint32_t count_tiles(const Matmul &a, uint32_t tokens) {
    return a.row_tiles * (a.groups ? a.groups->n_tiles : (a.n_tokens + tokens - 1) / tokens);
}

// The segment and first row of a tile of rows.
__device__ __forceinline__ void locate(const Matmul &a, uint32_t tile, uint32_t &segment, uint32_t &row0) {
    segment = 0;
    const bool pairs = a.epilogue == GATED;
    while (!pairs && segment + 1 < a.n_segments && tile >= (a.segments[segment].rows + TILE_M - 1) / TILE_M) {
        tile -= (a.segments[segment].rows + TILE_M - 1) / TILE_M;
        segment++;
    }
    row0 = tile * (pairs ? TILE_M / 2 : TILE_M);
}

// Neighbouring tiles share weights where all tokens do; of experts they share tokens, since each tile may have weights of its own.
__device__ __forceinline__ Tile tile_at(const Matmul &a, uint32_t index, uint32_t tokens) {
    Tile t;
    if (a.groups) {
        const ExpertTile of = a.tiles[index / a.row_tiles];
        t.tile = index % a.row_tiles, t.expert = of.expert, t.first = of.first, t.count = of.count;
    } else {
        const uint32_t across = (a.n_tokens + tokens - 1) / tokens;
        t.tile = index / across, t.expert = 0, t.first = index % across * tokens, t.count = min(tokens, a.n_tokens - t.first);
    }
    locate(a, a.first_tile + t.tile, t.segment, t.row0);
    return t;
}

__device__ __forceinline__ float bias_of(const Segment &s, uint32_t expert, uint32_t row) {
    return s.bias ? s.bias[(size_t)expert * s.rows + row] : 0.0f;
}

// A sum, or two of a pair, as the value that is set or added.
__device__ __forceinline__ float finish(const Matmul &a, float y, float up) {
    if (a.epilogue == GATED) {
        y = gated(a.activation, y, up, a.alpha, a.limit);
    } else if (a.epilogue == PLAIN) {
        y = activate(a.activation, y);
    }
    y *= a.scale;
    return a.softcap > 0.0f ? a.softcap * tanhf(y / a.softcap) : y;
}

// Where a row of a tile comes from. In pairs eight rows of the first segment lie beside the same eight of the second, so that a lane of the
// tensor cores' products holds both.
template <class F>
__device__ __forceinline__ Planes row_of_tile(const Matmul &a, uint32_t segment, uint32_t row0, uint32_t expert, uint32_t row) {
    const bool pairs = a.epilogue == GATED;
    const Segment &s = a.segments[pairs ? row % 16 / 8 : segment];
    const uint32_t mine = row0 + (pairs ? row / 16 * 8 + row % 8 : row);
    return row_of<F>(s.weights, (size_t)expert * s.rows + min(mine, s.rows - 1));
}

// What one of 256 decoders takes of a tile at once: units of one row, in one panel or two; LANES decoders have a row.
#define DECODERS 256
#define LANES 2
template <class F>
struct Chunk {
    static constexpr int PANELS = F::PAD == 7 ? 2 : 1;
    static constexpr int UNITS = PANELS * PANEL / F::UNIT / LANES;
    static constexpr int WORDS = UNITS * sizeof(typename F::Raw) / 4;
    static constexpr int AHEAD = WORDS <= 16 ? 3 : WORDS <= 24 ? 2 : 1;  // chunks on their way, in registers
};

// A decoder's row in the tile: such that eight lanes store to all eight banks of 16 bytes, whichever pieces their units' columns are.
template <class F>
__device__ __forceinline__ uint32_t row_of_decoder(uint32_t decoder) {
    const uint32_t r = decoder / LANES;
    return F::PAD == 5 ? r : (r & ~6u) | (r & 2) << 1 | (r & 4) >> 1;
}

// A decoder's units of a chunk, from one of the row's units on.
template <class F>
__device__ __forceinline__ void load_chunk(const Planes &from, uint32_t first, uint32_t units, typename F::Raw (&raw)[Chunk<F>::UNITS]) {
#pragma unroll
    for (int i = 0; i < Chunk<F>::UNITS; i++) raw[i] = F::load(from, min(first + i, units - 1));
}

// Decodes them to f16 into the row of each of its panels in shared memory; zeros beyond the last unit.
template <class F>
__device__ __forceinline__ void decode_chunk(const typename F::Raw (&raw)[Chunk<F>::UNITS], uint32_t first, uint32_t units, uint32_t row, uint32_t j,
                                             u8 *const (&panels)[Chunk<F>::PANELS]) {
    typedef Chunk<F> C;
#pragma unroll
    for (int i = 0; i < C::UNITS; i++) {
        const bool there = first + i < units;
        const int column = F::column(j * C::UNITS + i);
        float w[F::UNIT];
        F::decode(raw[i], w);
#pragma unroll
        for (int k = 0; k < F::UNIT; k += 8) {
            uint4 v;
            __half2 *h = (__half2 *)&v;
#pragma unroll
            for (int n = 0; n < 4; n++) h[n] = there ? __floats2half2_rn(w[k + 2 * n], w[k + 2 * n + 1]) : __half2half2(__half(0.0f));
            const uint32_t piece = (column + F::offset(k)) % PANEL / 8;
            *(uint4 *)(panels[C::PANELS == 2 ? F::offset(k) / PANEL : 0] + row * PANEL * 2 + (piece ^ row % 8) * 16) = v;
        }
    }
}
