// What the products of many vectors share: arguments, how activations lie, tiles, and what becomes of a sum.
//
// Activations lie in panels of 64 columns: all rows' first 64 columns, then all rows' next 64. Within eight rows the pieces of 16 bytes are
// permuted as the tensor cores want them in shared memory (piece c of row r lies at c ^ r % 8), so that a tile of a panel is one copy.
// Of experts, the rows are those of the slots (a token and one of its experts), sorted by expert; each expert's first row is a multiple of 8.
#pragma once
#include "quant.cuh"

#define PANEL 64
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
    const float *scales;  // of the rows
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
};

// Where a column of a row lies in the panels, in halves.
__device__ __forceinline__ size_t in_panels(uint32_t panel_rows, uint32_t row, uint32_t column) {
    const uint32_t piece = (column % PANEL / 8) ^ (row % 8);
    return ((size_t)(column / PANEL) * panel_rows + row) * PANEL + piece * 8 + column % 8;
}

// Some rows of one segment times some rows of x.
struct Tile {
    uint32_t segment, row0, expert, first, count;
};

// Tiles of all segments' rows; in pairs a tile is half as many rows of each.
__device__ __forceinline__ uint32_t row_tiles(const Matmul &a) {
    if (a.epilogue == GATED) return (a.segments[0].rows + TILE_M / 2 - 1) / (TILE_M / 2);
    uint32_t n = 0;
    for (uint32_t s = 0; s < a.n_segments; s++) n += (a.segments[s].rows + TILE_M - 1) / TILE_M;
    return n;
}

__device__ __forceinline__ uint32_t count_tiles(const Matmul &a, uint32_t tokens) {
    return row_tiles(a) * (a.groups ? a.groups->n_tiles : (a.n_tokens + tokens - 1) / tokens);
}

// Neighbouring tiles share weights where all tokens do; of experts they share tokens, since each tile may have weights of its own.
__device__ __forceinline__ Tile tile_at(const Matmul &a, uint32_t index, uint32_t tokens) {
    Tile t;
    uint32_t tile;
    if (a.groups) {
        const uint32_t rows = row_tiles(a);
        const ExpertTile of = a.tiles[index / rows];
        tile = index % rows, t.expert = of.expert, t.first = of.first, t.count = of.count;
    } else {
        const uint32_t across = (a.n_tokens + tokens - 1) / tokens;
        tile = index / across, t.expert = 0, t.first = index % across * tokens, t.count = min(tokens, a.n_tokens - t.first);
    }
    t.segment = 0;
    const bool pairs = a.epilogue == GATED;
    while (!pairs && t.segment + 1 < a.n_segments && tile >= (a.segments[t.segment].rows + TILE_M - 1) / TILE_M) {
        tile -= (a.segments[t.segment].rows + TILE_M - 1) / TILE_M;
        t.segment++;
    }
    t.row0 = tile * (pairs ? TILE_M / 2 : TILE_M);
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
