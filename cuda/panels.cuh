// How f16 activations lie: in panels of 64 columns, all rows' first 64 columns, then all rows' next 64. Within eight rows the pieces of 16 bytes
// are permuted as the tensor cores want them in shared memory (piece c of row r lies at c ^ r % 8), so that a tile of a panel is one copy.
#pragma once
#include "common.cuh"

#define PANEL 64

// Where a column of a row lies in the panels, in halves.
__device__ __forceinline__ size_t in_panels(uint32_t panel_rows, uint32_t row, uint32_t column) {
    const uint32_t piece = (column % PANEL / 8) ^ (row % 8);
    return ((size_t)(column / PANEL) * panel_rows + row) * PANEL + piece * 8 + column % 8;
}
