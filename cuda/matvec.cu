// Matrix times one to eight vectors, for block formats: what decoding a token, or checking a few drafts, is made of.
//
//   y[t][r] = epilogue( sum_c w[r][c] * norm(x[t])[c] + bias[r] )
//
// Shapes: w (rows, cols) in planes; x (n_tokens, width) f32, width <= cols, zeros beyond; y (n_tokens, rows) f32.
// Bytes moved: the matrix once, whatever the number of tokens; x once a block, from the second-level cache.
//
// A tile is sixteen rows, or eight of each of two matrices that are joined. `warps_a_tile` warps share its columns, 256 (an octet of units) at
// a time. Each warp copies the bytes of its next octets to shared memory while it works on one: those do not depend on x, so the first are
// under way before the kernel that makes x has ended.
//
// Block formats are integers under scales. x is brought to 16 bits under a scale for each 32 columns, two signed bytes hi and lo, and the
// products of integers are exact: mma m16n8k32, whose eight columns are hi and lo for each of the four units that the lanes of a row hold.
// x is spread so that a unit meets zeros in the columns of the other three; a lane gets the sums of the unit that it loaded, and of its scale
// alone. Those are scaled and added in f32: in a lane octet by octet, then the four lanes of a row, then the warps in their order. So the bits
// of y[t][r] depend on x[t], row r and the shape: not on T, not on the grid.
#include "matvec.cuh"

#define TILE 16u

// Ring slots of a warp; the host may ask for fewer.
#define STAGES_MAX 4

// How 128 columns of one token's x lie in shared memory: two pieces of eight times 16 bytes (unit t, hi or lo: 2t and 2t + 1), the scales of
// the four blocks of 32, and where the format has minima, scale times sum of the integers of every group of a unit.
template <class F>
struct Quad {
    static constexpr uint32_t SUMS = F::MINS ? 4 * F::GROUPS : 0, SUM_COLS = F::MINS ? 32 / F::GROUPS : 32;
    static constexpr uint32_t BYTES = 256 + 16 + 4 * SUMS;
};

// Bytes that x takes for so many octets of columns.
template <class F, class G>
__device__ __forceinline__ uint32_t staged_bytes(uint32_t octets) {
    return 2 * octets * (SAME<F, G> ? Quad<F>::BYTES : Quad<F>::BYTES + Quad<G>::BYTES);
}

template <class F>
__device__ __forceinline__ void store_quad(u8 *x, uint32_t c, uint32_t hi, uint32_t lo, float scale, int sum) {
    u8 *quad = x + c / 128 * Quad<F>::BYTES;
    const Place at = F::place(c % 128);
    u8 *word = quad + at.word / 4 * 128 + at.unit * 32 + at.word % 4 * 4;
    *(uint32_t *)word = hi, *(uint32_t *)(word + 16) = lo;
    if (c % 32 == 0) ((float *)(quad + 256))[c % 128 / 32] = scale;
    if constexpr (F::MINS) {
#pragma unroll
        for (uint32_t d = 1; d < Quad<F>::SUM_COLS / 4; d *= 2) sum += __shfl_xor_sync(ALL, sum, d);
        if (c % Quad<F>::SUM_COLS == 0) ((float *)(quad + 272))[c % 128 / Quad<F>::SUM_COLS] = scale * (float)sum;
    }
}

// Four neighbours of a block of 32, which eight lanes hold together.
template <class F, class G>
__device__ __forceinline__ void store_ints(u8 *x, uint32_t octets, uint32_t c, float4 v) {
    float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
    for (int d = 1; d < 8; d *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
    const float inverse = most > 0.0f ? 32512.0f / most : 0.0f, scale = most / 32512.0f;
    const int n[4] = {__float2int_rn(v.x * inverse), __float2int_rn(v.y * inverse), __float2int_rn(v.z * inverse), __float2int_rn(v.w * inverse)};
    uint32_t hi = 0, lo = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int h = (n[i] + 128) >> 8;
        hi |= (uint32_t)(h & 255) << (8 * i), lo |= (uint32_t)((n[i] - 256 * h) & 255) << (8 * i);
    }
    const int sum = (n[0] + n[1]) + (n[2] + n[3]);
    store_quad<F>(x, c, hi, lo, scale, sum);
    if constexpr (!SAME<F, G>) store_quad<G>(x + 2 * octets * Quad<F>::BYTES, c, hi, lo, scale, sum);
}

// Brings a row of x, normalised, to shared memory, with zeros to the end of the last octet.
template <class F, class G, bool ALIGNED>
__device__ __forceinline__ void stage_row(const Matvec &a, const float *row, uint32_t octets, u8 *to, float *room) {
    const uint32_t end = 256 * octets, step = 4 * blockDim.x;  // whole warps stay together: 128 columns a warp
    const Moments m = moments<ALIGNED>(a, row, room);
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (uint32_t c0 = 4 * threadIdx.x; c0 < end; c0 += STAGED * step) {
        float4 v[STAGED], w[STAGED];
#pragma unroll
        for (int k = 0; k < STAGED; k++) {
            v[k] = load4<ALIGNED>(row, c0 + k * step, a.width);
            w[k] = a.norm != NORM_NONE ? load4<ALIGNED>(a.norm_weight, c0 + k * step, a.width) : zero;
        }
#pragma unroll
        for (int k = 0; k < STAGED; k++) {
            const uint32_t c = c0 + k * step;
            if (c >= end) break;
            const float4 b = a.norm_bias ? load4<ALIGNED>(a.norm_bias, c, a.width) : zero;
            store_ints<F, G>(to, octets, c, normed(a, m, v[k], w[k], b));
        }
    }
}

template <class F, class G>
__device__ void stage_x(const Matvec &a, const float *x, uint32_t octets, u8 *xs, float *room) {
    for (uint32_t t = 0; t < a.n_tokens; t++) {
        const float *row = x + (size_t)t * a.x_stride;
        u8 *to = xs + t * staged_bytes<F, G>(octets);
        if (a.width % 4 == 0) {
            stage_row<F, G, true>(a, row, octets, to, room);
        } else {
            stage_row<F, G, false>(a, row, octets, to, room);
        }
    }
}

// Bytes of an octet of sixteen rows.
template <class F>
constexpr __host__ __device__ uint32_t slot_bytes() {
    return TILE * (F::octet(0) + (F::PLANES > 1 ? F::octet(1) : 0) + (F::PLANES > 2 ? F::octet(2) : 0) + (F::PLANES > 3 ? F::octet(3) : 0));
}

// Rows of a slot are turned by some of their 16 bytes, so that the lanes of a warp, which read neighbouring rows, meet no bank conflict.
__device__ __forceinline__ uint32_t turned(uint32_t plane_bytes, uint32_t row) {
    if (plane_bytes == 256) return (row & 1) << 4;
    return plane_bytes == 128 || plane_bytes == 64 ? ((row & 1) << 6 | (row & 2) << 4) & (plane_bytes - 1) : 0;
}

// One row of a slot, read as if it were a row of the matrix: `Planes` of shared memory.
template <class F>
struct SlotRow {
    const u8 *slot;
    uint32_t row;

    template <int P>
    __device__ __forceinline__ const u8 *at(uint32_t byte) const {
        uint32_t before = 0;
#pragma unroll
        for (int p = 0; p < P; p++) before += TILE * F::octet(p);
        return slot + before + row * F::octet(P) + (byte ^ turned(F::octet(P), row));
    }
    template <int P>
    __device__ __forceinline__ uint32_t u8_at(uint32_t byte) const { return *at<P>(byte); }
    template <int P>
    __device__ __forceinline__ uint32_t u16_at(uint32_t byte) const { return *(const unsigned short *)at<P>(byte); }
    template <int P>
    __device__ __forceinline__ uint32_t u32_at(uint32_t byte) const { return *(const uint32_t *)at<P>(byte); }
    template <int P>
    __device__ __forceinline__ uint2 u64_at(uint32_t byte) const { return *(const uint2 *)at<P>(byte); }
    template <int P>
    __device__ __forceinline__ uint4 u128_at(uint32_t byte) const { return *(const uint4 *)at<P>(byte); }
};

// An asynchronous copy to shared memory, zeros where there is nothing to copy.
__device__ __forceinline__ void copy(u8 *to, const u8 *from, uint32_t bytes, bool there) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to), n = there ? bytes : 0;
    if (bytes == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(n) : "memory");
    } else if (bytes == 8) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(at), "l"(from), "r"(n) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(n) : "memory");
    }
}

// Copies made by a lane are done in groups; waits until at most `left` of them are not.
__device__ __forceinline__ void close_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

__device__ __forceinline__ void await_groups(uint32_t left) {
    if (left == 0) {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
    } else if (left == 1) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else if (left == 2) {
        asm volatile("cp.async.wait_group 2;" ::: "memory");
    } else {
        asm volatile("cp.async.wait_group 3;" ::: "memory");
    }
}

// Sixteen rows: eight from `row` on of one segment, and eight more, or as many of the next segment.
struct Tile {
    uint32_t segment, row, rows;
};

__device__ __forceinline__ Tile tile_of(const Matvec &a, uint32_t tile) {
    if (a.epilogue == GATED) return {0, 8 * tile, min(8u, a.segments[0].rows - 8 * tile)};
    uint32_t segment = 0;
    for (; segment + 1 < a.n_segments; segment++) {
        const uint32_t tiles = (a.segments[segment].rows + TILE - 1) / TILE;
        if (tile < tiles) break;
        tile -= tiles;
    }
    return {segment, TILE * tile, min(TILE, a.segments[segment].rows - TILE * tile)};
}

// Asks for one octet of a tile's columns.
template <class F>
__device__ __forceinline__ void copy_octet(const Matvec &a, const Tile &tile, uint32_t expert, uint32_t octet, u8 *slot) {
    const uint32_t lane = threadIdx.x % WARP;
    const bool pairs = a.epilogue == GATED;
    uint32_t before = 0;
#pragma unroll
    for (int p = 0; p < F::PLANES; p++) {
        const uint32_t bytes = F::octet(p), chunk = bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : 4, a_row = bytes / chunk, n = TILE * a_row;
        const Segment &s = a.segments[tile.segment];
        const uint32_t row_bytes = s.weights.row_bytes[p];
#pragma unroll
        for (uint32_t i = 0; i < n; i += WARP) {
            const uint32_t k = i + lane, row = k / a_row, piece = k % a_row * chunk, column = octet * bytes + piece;
            if (n % WARP != 0 && k >= n) break;
            const bool second = pairs && row >= 8;
            const uint32_t in_half = second ? row - 8 : row;
            const Segment &of = second ? a.segments[1] : s;
            const u8 *from = of.weights.planes.p[p] + ((size_t)expert * of.rows + tile.row + in_half) * row_bytes + column;
            copy(slot + before + row * bytes + (piece ^ turned(bytes, row)), from, chunk, in_half < tile.rows && column < row_bytes);
        }
        before += TILE * bytes;
    }
}

__device__ __forceinline__ void mma_ints(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Where a lane finds its x: zeros, where the unit that it holds is not the one of its column.
struct Lane {
    uint32_t g, t;
    const u8 *zeros;
    bool active;
};

// Which of a quad's block scales belongs to a group of a unit, and which of its sums.
template <class F>
__device__ __forceinline__ uint32_t scale_place(uint32_t unit, int group) {
    return F::GROUPS == 1 ? unit : F::GROUPS == 2 ? unit / 2 * 2 + group : group;
}

template <class F>
__device__ __forceinline__ uint32_t sum_place(uint32_t unit, int group) {
    return F::GROUPS == 1 ? unit : F::GROUPS == 2 ? unit / 2 * 4 + group * 2 + unit % 2 : group * 4 + unit;
}

// 128 columns of sixteen rows times T tokens: two rows a lane, one unit of each.
template <class F, int T>
__device__ __forceinline__ void multiply_quad(const Lane &l, const u8 *slot, uint32_t half, const u8 *quad, uint32_t stride, uint32_t n_tokens, float (&acc)[T][2]) {
    constexpr int GROUPS = F::GROUPS, STEPS = 4 / GROUPS;
    uint32_t q[2][8];
    float d[2][GROUPS], m[2][GROUPS];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const typename F::Raw raw = F::load(SlotRow<F>{slot, l.g + 8 * r}, 4 * half + l.t);
        F::ints(raw, q[r]);
        F::scales(raw, d[r], m[r]);
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (T > 1 && t >= n_tokens) break;
        const u8 *x = quad + t * stride, *bits = l.active ? x + 16 * l.g : l.zeros;
        const uint4 b0 = *(const uint4 *)bits, b1 = *(const uint4 *)(bits + 128);
        const uint32_t b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            int c[4] = {0, 0, 0, 0};
#pragma unroll
            for (int j = g * STEPS; j < (g + 1) * STEPS; j++)
                mma_ints(c, q[0][2 * j], q[1][2 * j], q[0][2 * j + 1], q[1][2 * j + 1], b[2 * j], b[2 * j + 1]);
            const float scale = ((const float *)(x + 256))[scale_place<F>(l.t, g)];
            acc[t][0] = fmaf(d[0][g] * scale, (float)(256 * c[0] + c[1]), acc[t][0]);
            acc[t][1] = fmaf(d[1][g] * scale, (float)(256 * c[2] + c[3]), acc[t][1]);
            if constexpr (F::MINS) {
                const float sum = ((const float *)(x + 272))[sum_place<F>(l.t, g)];
                acc[t][0] = fmaf(-m[0][g], sum, acc[t][0]);
                acc[t][1] = fmaf(-m[1][g], sum, acc[t][1]);
            }
        }
    }
}

// What becomes of a tile's sums, which its warps have left in `parts`: (warps, 16, T).
template <int T>
__device__ __forceinline__ void store_tile(const Matvec &a, const Tile &tile, uint32_t slot, uint32_t expert, const float *parts, uint32_t warps) {
    const bool pairs = a.epilogue == GATED;
    const uint32_t lane = threadIdx.x % WARP, rows = pairs ? 8 : TILE;
    const Segment &s = a.segments[tile.segment];
    auto sum = [&](uint32_t row, uint32_t t) {
        float y = 0.0f;
        for (uint32_t w = 0; w < warps; w++) y += parts[(w * TILE + row) * T + t];
        return y;
    };
    for (uint32_t k = lane; k < rows * a.n_tokens; k += WARP) {
        const uint32_t in_tile = k % rows, t = k / rows, row = tile.row + in_tile;
        if (in_tile >= tile.rows) continue;
        float y = sum(in_tile, t) + (s.bias ? s.bias[(size_t)expert * s.rows + row] : 0.0f);
        if (pairs) {
            const Segment &up = a.segments[1];
            y = gated(a.activation, y, sum(in_tile + 8, t) + (up.bias ? up.bias[(size_t)expert * up.rows + row] : 0.0f), a.alpha, a.limit);
        } else if (a.epilogue == PLAIN) {
            y = activate(a.activation, y);
        }
        float *to = s.out + (size_t)(a.experts ? slot : t) * s.out_stride + row;
        y = finish(a, y);
        *to = a.epilogue == ADD ? *to + y : y;
    }
}

// The warps of a tile wait for one another.
__device__ __forceinline__ void await_warps(uint32_t barrier, uint32_t warps) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(warps * WARP) : "memory");
}

template <class F, class G, int T>
__device__ __forceinline__ void matvec(const Matvec &a) {
    extern __shared__ __align__(16) u8 shared[];
    __shared__ float room[32];
    __shared__ __align__(16) u8 zeros[144];
    constexpr uint32_t SLOT = slot_bytes<F>() > slot_bytes<G>() ? slot_bytes<F>() : slot_bytes<G>();
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, of_tile = warp % a.warps_a_tile, which = warp / a.warps_a_tile;
    const uint32_t octets = (a.cols + 255) / 256, stride = staged_bytes<F, G>(octets), stages = a.stages;
    u8 *slots = shared + a.n_tokens * stride + warp * stages * SLOT;
    float *parts = (float *)(shared + a.n_tokens * stride + a.tiles_a_pass * a.warps_a_tile * stages * SLOT);
    if (a.experts) wait_for_inputs();  // which weights are read is an input too
    const uint32_t slot = blockIdx.y, expert = a.experts ? a.experts[slot] : 0;

    // each block takes tiles in turn; neighbouring ones go to different multiprocessors
    const uint32_t step = gridDim.x * a.tiles_a_pass;
    const uint32_t mine = which < a.tiles_a_pass ? which * gridDim.x + blockIdx.x : a.n_tiles;
    uint32_t ahead_tile = mine, ahead_octet = of_tile, filled = 0;
    auto fetch = [&]() {
        if (ahead_tile < a.n_tiles) {
            if (ahead_octet < octets) {
                const Tile tile = tile_of(a, ahead_tile);
                u8 *to = slots + filled * SLOT;
                if (SAME<F, G> || tile.segment < a.second_from) {
                    copy_octet<F>(a, tile, expert, ahead_octet, to);
                } else {
                    copy_octet<G>(a, tile, expert, ahead_octet, to);
                }
                filled = filled + 1 == stages ? 0 : filled + 1;
            }
            ahead_octet += a.warps_a_tile;
            if (ahead_octet >= octets) ahead_octet = of_tile, ahead_tile += step;
            if (ahead_tile >= a.n_tiles) let_next_start();
        }
        close_group();
    };
    for (uint32_t i = 0; i < stages; i++) fetch();
    if (threadIdx.x < 36) ((uint32_t *)zeros)[threadIdx.x] = 0;
    wait_for_inputs();
    const uint32_t first_token = a.experts ? slot / a.slots_a_token : 0;
    stage_x<F, G>(a, a.x + (size_t)first_token * a.x_stride, octets, shared, room);
    __syncthreads();

    const Lane l = {lane / 4, lane % 4, zeros, lane / 8 == lane % 4};
    uint32_t current = 0, turn = 0;
    for (uint32_t at = mine; at < a.n_tiles; at += step, turn++) {
        const Tile tile = tile_of(a, at);
        float acc[T][2];
#pragma unroll
        for (int t = 0; t < T; t++) acc[t][0] = 0.0f, acc[t][1] = 0.0f;
        uint32_t octet = of_tile;
        do {
            if (octet < octets) {
                await_groups(stages - 1);
                __syncwarp();
                const u8 *from = slots + current * SLOT;
                if (SAME<F, G> || tile.segment < a.second_from) {
                    const u8 *quad = shared + 2 * octet * Quad<F>::BYTES;
                    multiply_quad<F, T>(l, from, 0, quad, stride, a.n_tokens, acc);
                    multiply_quad<F, T>(l, from, 1, quad + Quad<F>::BYTES, stride, a.n_tokens, acc);
                } else {
                    const u8 *quad = shared + 2 * octets * Quad<F>::BYTES + 2 * octet * Quad<G>::BYTES;
                    multiply_quad<G, T>(l, from, 0, quad, stride, a.n_tokens, acc);
                    multiply_quad<G, T>(l, from, 1, quad + Quad<G>::BYTES, stride, a.n_tokens, acc);
                }
                current = current + 1 == stages ? 0 : current + 1;
                __syncwarp();
            }
            fetch();
            octet += a.warps_a_tile;
        } while (octet < octets);
        float *left = parts + ((turn % 2 * a.tiles_a_pass + which) * a.warps_a_tile + of_tile) * TILE * T;
#pragma unroll
        for (int t = 0; t < T; t++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float v = acc[t][r];
                v += __shfl_xor_sync(ALL, v, 1);
                v += __shfl_xor_sync(ALL, v, 2);
                if (l.t == t % 4) left[(l.g + 8 * r) * T + t] = v;
            }
        }
        await_warps(1 + which, a.warps_a_tile);
        if (turn % a.warps_a_tile == of_tile) store_tile<T>(a, tile, slot, expert, left - of_tile * TILE * T, a.warps_a_tile);
    }
}

// Names for the host: matvec_Q4_K_1 is for one token, matvec_Q4_K_Q6_K_1 for segments of the two types. Sixteen warps a block, always: the
// order of a norm's sum depends on it.
#define INSTANCE(NAME, F, G, T, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(512, BLOCKS) matvec_##NAME##_##T(const __grid_constant__ Matvec a) { matvec<F, G, T>(a); }
#define INSTANCES(F) INSTANCE(F, F, F, 1, 2) INSTANCE(F, F, F, 2, 1) INSTANCE(F, F, F, 8, 1)
#define PAIR(F, G) INSTANCE(F##_##G, F, G, 1, 2) INSTANCE(F##_##G, F, G, 2, 1) INSTANCE(F##_##G, F, G, 8, 1)
#ifdef ONLY
INSTANCES(Q4_K)
PAIR(Q4_K, Q6_K)
#else
FOR_EACH_BLOCK(INSTANCES)
PAIR(Q4_K, Q6_K)
PAIR(Q5_K, Q6_K)
PAIR(Q5_0, Q8_0)
#endif
