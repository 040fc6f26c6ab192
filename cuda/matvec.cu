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
// Block formats are integers under scales. An octet of x is brought to 16 bits under one scale, two signed bytes hi and lo, and the
// products of integers are exact: mma m16n8k32, whose eight columns are hi and lo for each of the four units that the lanes of a row hold.
// x is spread so that a unit meets zeros in the columns of the other three; a lane gets the sums of the unit that it loaded, and of its scale
// alone. What a format takes off its integers (OFFSET) is where these sums begin. Scales that are integers are applied as integers. An octet's
// sum is scaled and added in f32: in a lane octet by octet, then the four lanes of a row, then the warps in their order. So the bits
// of y[t][r] depend on x[t], row r and the shape: not on T, not on the grid.
#include "matvec.cuh"

#define TILE 16u
#define WARPS 16u  // of a block, always: the order of a norm's sum depends on it

// How an octet of one token's x lies in shared memory: for each half, two pieces of eight times 16 bytes (unit t, hi or lo: 2t and 2t + 1);
// its scale; and for each unit WORDS words: of a format with minima the sum of x's integers in each group, of a format with an offset what the
// offset makes of the sums of hi and of lo.
template <class F>
struct Octet {
    static constexpr uint32_t WORDS = F::MINS ? F::GROUPS : F::OFFSET ? 2 * F::GROUPS : 0, SCALE = 512, SUMS = 528;
    static constexpr uint32_t GROUP_COLS = 32 / F::GROUPS, BYTES = SUMS + 8 * 4 * WORDS;
};

// Bytes that a token's x takes for so many octets.
template <class F, class G>
__device__ __forceinline__ uint32_t staged_bytes(uint32_t octets) {
    return octets * (SAME<F, G> ? Octet<F>::BYTES : Octet<F>::BYTES + Octet<G>::BYTES);
}

// Four neighbours of x as integers: their high and low bytes, and the sums of both.
struct Four {
    uint32_t hi, lo;
    int hi_sum, lo_sum;
};

__device__ __forceinline__ Four to_ints(float4 v, float inverse) {
    const int n[4] = {__float2int_rn(v.x * inverse), __float2int_rn(v.y * inverse), __float2int_rn(v.z * inverse), __float2int_rn(v.w * inverse)};
    Four four = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int h = (n[i] + 128) >> 8, l = n[i] - 256 * h;
        four.hi |= (uint32_t)(h & 255) << (8 * i), four.lo |= (uint32_t)(l & 255) << (8 * i);
        four.hi_sum += h, four.lo_sum += l;
    }
    return four;
}

// Columns 4 lane .. 4 lane + 3 of one half.
template <class F>
__device__ __forceinline__ void store_four(u8 *octet, uint32_t half, const Four &four) {
    const uint32_t c = threadIdx.x % WARP * 4;
    const Place at = F::place(c);
    u8 *word = octet + half * 256 + at.word / 4 * 128 + at.unit * 32 + at.word % 4 * 4;
    *(uint32_t *)word = four.hi, *(uint32_t *)(word + 16) = four.lo;
    if constexpr (Octet<F>::WORDS > 0) {
        int hi = four.hi_sum, lo = four.lo_sum;
#pragma unroll
        for (uint32_t d = 1; d < Octet<F>::GROUP_COLS / 4; d *= 2) hi += __shfl_xor_sync(ALL, hi, d), lo += __shfl_xor_sync(ALL, lo, d);
        if (c % Octet<F>::GROUP_COLS != 0) return;
        const uint32_t group = at.word / (8 / F::GROUPS);
        int *words = (int *)(octet + Octet<F>::SUMS) + (half * 4 + at.unit) * Octet<F>::WORDS;
        if constexpr (F::MINS) {
            words[group] = F::NESTED ? 256 * hi + lo : __float_as_int((float)(256 * hi + lo));
        } else {
            words[2 * group] = -F::OFFSET * hi, words[2 * group + 1] = -F::OFFSET * lo;
        }
    }
}

// 256 columns, of which a lane has four of each half.
template <class F, class G>
__device__ __forceinline__ void store_octet(u8 *x, uint32_t octets, uint32_t octet, float4 a, float4 b) {
    const float of_a = fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(a.z), fabsf(a.w)));
    const float of_b = fmaxf(fmaxf(fabsf(b.x), fabsf(b.y)), fmaxf(fabsf(b.z), fabsf(b.w)));
    const float most = warp_max(fmaxf(of_a, of_b));
    const float inverse = most > 0.0f ? 32512.0f / most : 0.0f;
    const Four first = to_ints(a, inverse), second = to_ints(b, inverse);
    u8 *to = x + octet * Octet<F>::BYTES;
    store_four<F>(to, 0, first), store_four<F>(to, 1, second);
    if (threadIdx.x % WARP == 0) *(float *)(to + Octet<F>::SCALE) = most / 32512.0f;
    if constexpr (!SAME<F, G>) {
        u8 *also = x + octets * Octet<F>::BYTES + octet * Octet<G>::BYTES;
        store_four<G>(also, 0, first), store_four<G>(also, 1, second);
        if (threadIdx.x % WARP == 0) *(float *)(also + Octet<G>::SCALE) = most / 32512.0f;
    }
}

// What a lane holds of an octet of a row: four neighbours of each half.
struct Eight {
    float4 a, b;
};

__device__ __forceinline__ Eight eight(const float *row, uint32_t octet, uint32_t width) {
    const uint32_t c = 256 * octet + 4 * (threadIdx.x % WARP);
    if (width % 4 == 0) return {load4<true>(row, c, width), load4<true>(row, c + 128, width)};
    return {load4<false>(row, c, width), load4<false>(row, c + 128, width)};
}

// The factor of a root-mean-square norm needs the whole row; it is left to the results, so that x need not wait for it.
__device__ __forceinline__ bool is_late(const Matvec &a) { return a.norm == NORM_RMS && !a.norm_bias; }

// The late factor of a token, from the sums of squares that the warps have left.
__device__ __forceinline__ float late_factor(const Matvec &a, const float *squares) {
    float sum = 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w += 4) {
        const float4 four = *(const float4 *)(squares + w);
        sum += (four.x + four.y) + (four.z + four.w);
    }
    return is_late(a) ? rsqrtf(sum / (float)a.width + a.eps) : 1.0f;
}

// Kept apart from the code of most models, which has no use for it.
__device__ __noinline__ Moments early_moments(const Matvec &a, const float *row, float *room) {
    return a.width % 4 == 0 ? moments<true>(a, row, room) : moments<false>(a, row, room);
}

__device__ __forceinline__ float squared(float4 v) { return fmaf(v.x, v.x, v.y * v.y) + fmaf(v.z, v.z, v.w * v.w); }

// Brings a row of x, normalised, to shared memory, with zeros to the end of the last octet; each warp takes every WARPS-th octet. The code is
// short on purpose: it runs once a launch, and instructions are fetched as slowly as data.
template <class F, class G>
__device__ __forceinline__ void stage_row(const Matvec &a, const float *row, uint32_t octets, u8 *to, float *squares, float *room) {
    Moments m = {0.0f, 1.0f};
    if (a.norm != NORM_NONE && !is_late(a)) m = early_moments(a, row, room);
    float sum = 0.0f;
    uint32_t octet = threadIdx.x / WARP;
    Eight next = eight(row, octet, a.width);
#pragma unroll 1
    for (; octet < octets; octet += WARPS) {
        Eight v = next;
        next = eight(row, octet + WARPS, a.width);
        sum += squared(v.a) + squared(v.b);
        if (a.norm != NORM_NONE) {
            const Eight w = eight(a.norm_weight, octet, a.width);
            Eight b = {};
            if (a.norm_bias) b = eight(a.norm_bias, octet, a.width);
            v.a = normed(a, m, v.a, w.a, b.a), v.b = normed(a, m, v.b, w.b, b.b);
        }
        store_octet<F, G>(to, octets, octet, v.a, v.b);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) squares[threadIdx.x / WARP] = sum;
}

template <class F, class G>
__device__ __forceinline__ void stage_x(const Matvec &a, uint32_t first_token, uint32_t octets, u8 *xs, float (*squares)[WARPS], float *room) {
    // a norm's weights come nearer while the inputs are waited for
    if (a.norm != NORM_NONE && threadIdx.x < (a.width + 31) / 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm_weight + 32 * threadIdx.x));
    wait_for_inputs();
#pragma unroll 1
    for (uint32_t t = 0; t < a.n_tokens; t++)
        stage_row<F, G>(a, a.x + (size_t)(first_token + t) * a.x_stride, octets, xs + t * staged_bytes<F, G>(octets), squares[t], room);
}

// ---- weights on their way -------------------------------------------------------------------------------------------------------------

// Bytes of an octet of sixteen rows, of the planes before P or of all.
template <class F, int P = F::PLANES>
constexpr __host__ __device__ uint32_t slot_bytes() {
    uint32_t bytes = 0;
    for (int p = 0; p < P; p++) bytes += TILE * F::octet(p);
    return bytes;
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
        return slot + slot_bytes<F, P>() + row * F::octet(P) + (byte ^ turned(F::octet(P), row));
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

// An asynchronous copy of BYTES to shared memory, of which all but the first `n` become zeros.
template <uint32_t BYTES>
__device__ __forceinline__ void copy(uint32_t to, const u8 *from, uint32_t n) {
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(n) : "memory");
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
    } else if (left == 3) {
        asm volatile("cp.async.wait_group 3;" ::: "memory");
    } else {
        asm volatile("cp.async.wait_group 4;" ::: "memory");
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

// How a warp copies an octet of a plane: so many lanes a row with so many bytes each, in steps of 32 lanes; a lane's places in the lower and the
// upper half of the steps are `PER` steps apart.
template <class F, int P>
struct Lanes {
    static constexpr uint32_t BYTES = F::octet(P), EACH = BYTES % 16 == 0 ? 16 : BYTES % 8 == 0 ? 8 : 4, A_ROW = BYTES / EACH;
    static constexpr uint32_t STEPS = (TILE * A_ROW + WARP - 1) / WARP, HALVES = STEPS > 1 ? 2 : 1, PER = STEPS / HALVES, STEP_ROWS = WARP / A_ROW;
};

// Which row and bytes of a plane a lane copies in the first step of a half.
template <class F, int P>
struct Mine {
    uint32_t row, piece;
    bool any;
    __device__ __forceinline__ explicit Mine(uint32_t half) {
        typedef Lanes<F, P> L;
        const uint32_t k = half * L::PER * WARP + threadIdx.x % WARP;
        row = k / L::A_ROW, piece = k % L::A_ROW * L::EACH, any = k < TILE * L::A_ROW;
    }
};

// Asks for one octet of a plane. WHOLE: all rows are there, and all columns.
template <class F, int P, bool WHOLE>
__device__ __forceinline__ void copy_plane(const Matvec &a, const Tile &tile, uint32_t first_row, uint32_t octet, uint32_t slot) {
    if constexpr (P < F::PLANES) {
        typedef Lanes<F, P> L;
#pragma unroll
        for (uint32_t half = 0; half < L::HALVES; half++) {
            const Mine<F, P> mine(half);
            const bool second = a.epilogue == GATED && mine.row >= 8;
            const Segment &s = a.segments[second ? 1 : tile.segment];
            const uint32_t row_bytes = s.weights.row_bytes[P], column = octet * L::BYTES + mine.piece, row = second ? mine.row - 8 : mine.row;
            const u8 *at = s.weights.planes.p[P] + (size_t)(first_row + row) * row_bytes + column;
            const uint32_t to = slot + slot_bytes<F, P>() + mine.row * L::BYTES + (mine.piece ^ turned(L::BYTES, mine.row));
#pragma unroll
            for (uint32_t i = 0; i < L::PER; i++) {
                const bool there = WHOLE || (row + i * L::STEP_ROWS < tile.rows && column < row_bytes);
                if (mine.any) copy<L::EACH>(to + i * L::STEP_ROWS * L::BYTES, at + i * L::STEP_ROWS * row_bytes, there ? L::EACH : 0);
            }
        }
        copy_plane<F, P + 1, WHOLE>(a, tile, first_row, octet, slot);
    }
}

// Asks for one octet of a tile; `expert`: whose rows.
template <class F>
__device__ __forceinline__ void copy_octet(const Matvec &a, const Tile &tile, uint32_t expert, uint32_t octet, uint32_t slot) {
    const uint32_t first_row = expert * a.segments[tile.segment].rows + tile.row;
    if (tile.rows == (a.epilogue == GATED ? 8 : TILE) && octet < a.cols / 256) {
        copy_plane<F, 0, true>(a, tile, first_row, octet, slot);
    } else {
        copy_plane<F, 0, false>(a, tile, first_row, octet, slot);
    }
}

// ---- products -------------------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mma_ints(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A lane's place, and where it finds its x: zeros, where the unit that it holds is not the one of its column.
struct Lane {
    uint32_t g, t;
    const u8 *zeros;
    bool active;
};

// What an octet keeps of a unit.
template <class F>
struct Words {
    int w[Octet<F>::WORDS > 0 ? Octet<F>::WORDS : 1];
    __device__ __forceinline__ Words(const u8 *octet, uint32_t half, uint32_t unit) {
        constexpr uint32_t N = Octet<F>::WORDS;
        const int *from = (const int *)(octet + Octet<F>::SUMS) + (half * 4 + unit) * N;
        if constexpr (N == 1) w[0] = from[0];
        if constexpr (N == 2) *(int2 *)w = *(const int2 *)from;
#pragma unroll
        for (uint32_t i = 0; N >= 4 && i < N; i += 4) {
            const int4 four = *(const int4 *)(from + i);
            w[i] = four.x, w[i + 1] = four.y, w[i + 2] = four.z, w[i + 3] = four.w;
        }
    }
};

// The sums of an octet under way: of two rows, integers where scales are integers, otherwise floats.
struct Sums {
    int hi[2], lo[2], low[2];
    float f[2];
};

// Half an octet of sixteen rows times one token: two rows a lane, one unit of each.
template <class F>
__device__ __forceinline__ void multiply_half(const Lane &l, const uint32_t (&q)[2][8], const int (&s)[2][4], const int (&m)[2][4], const float (&d)[2],
                                              const float (&dm)[2], const u8 *octet, uint32_t half, Sums &sums) {
    constexpr int GROUPS = F::GROUPS, STEPS = 4 / GROUPS;
    const u8 *bits = (l.active ? octet + 16 * l.g : l.zeros) + 256 * half;
    const uint4 b0 = *(const uint4 *)bits, b1 = *(const uint4 *)(bits + 128);
    const uint32_t b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
    const Words<F> words(octet, half, l.t);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        int c[4] = {0, 0, 0, 0};
        if constexpr (F::OFFSET) c[0] = c[2] = words.w[2 * g], c[1] = c[3] = words.w[2 * g + 1];
#pragma unroll
        for (int j = g * STEPS; j < (g + 1) * STEPS; j++)
            mma_ints(c, q[0][2 * j], q[1][2 * j], q[0][2 * j + 1], q[1][2 * j + 1], b[2 * j], b[2 * j + 1]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if constexpr (F::NESTED) {
                sums.hi[r] += s[r][g] * c[2 * r], sums.lo[r] += s[r][g] * c[2 * r + 1];
                if constexpr (F::MINS) sums.low[r] += m[r][g] * words.w[g];
            } else {
                sums.f[r] = fmaf(d[r], (float)(256 * c[2 * r] + c[2 * r + 1]), sums.f[r]);
                if constexpr (F::MINS) sums.f[r] = fmaf(-dm[r], __int_as_float(words.w[0]), sums.f[r]);
            }
        }
    }
}

// An octet of sixteen rows times T tokens.
template <class F, int T>
__device__ __forceinline__ void multiply_octet(const Lane &l, const u8 *slot, const u8 *octet, uint32_t stride, uint32_t n_tokens, float (&acc)[T][2]) {
    Sums sums[T];
#pragma unroll
    for (int t = 0; t < T; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) sums[t].hi[r] = 0, sums[t].lo[r] = 0, sums[t].low[r] = 0, sums[t].f[r] = 0.0f;
    float d[2] = {0.0f, 0.0f}, dm[2] = {0.0f, 0.0f};
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t q[2][8];
        int s[2][4], m[2][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const typename F::Raw raw = F::load(SlotRow<F>{slot, l.g + 8 * r}, 4 * half + l.t);
            F::ints(raw, q[r]);
            if constexpr (F::NESTED) {
                F::factors(raw, s[r], m[r]);
                const float2 whole = F::whole(raw);
                d[r] = whole.x, dm[r] = whole.y;
            } else {
                F::scales(raw, &d[r], &dm[r]);
            }
        }
#pragma unroll
        for (int t = 0; t < T; t++) {
            if (T > 1 && t >= n_tokens) break;
            multiply_half<F>(l, q, s, m, d, dm, octet + t * stride, half, sums[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (T > 1 && t >= n_tokens) break;
        const float scale = *(const float *)(octet + t * stride + Octet<F>::SCALE);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float v = sums[t].f[r];
            if constexpr (F::NESTED) v = d[r] * fmaf(256.0f, (float)sums[t].hi[r], (float)sums[t].lo[r]);
            if constexpr (F::NESTED && F::MINS) v = fmaf(-dm[r], (float)sums[t].low[r], v);
            acc[t][r] = fmaf(scale, v, acc[t][r]);
        }
    }
}

// Where the results of a tile go that a lane stores first; null for none.
__device__ __forceinline__ float *result_of(const Matvec &a, const Tile &tile, uint32_t slot, uint32_t k) {
    const uint32_t rows = a.epilogue == GATED ? 8 : TILE, in_tile = k % rows, t = k / rows;
    if (in_tile >= tile.rows || t >= a.n_tokens) return nullptr;
    const Segment &s = a.segments[tile.segment];
    return s.out + (size_t)(a.experts ? slot : t) * s.out_stride + tile.row + in_tile;
}

// What becomes of a tile's sums, which its warps have left in `parts`: (warps, 16, T). `only`: the factor
// of the only token; `old`: what lies where a lane stores first.
template <int T>
__device__ __forceinline__ void store_tile(const Matvec &a, const Tile &tile, uint32_t slot, uint32_t expert, const float *parts, float (*squares)[WARPS], float only, float old) {
    const bool pairs = a.epilogue == GATED;
    const uint32_t lane = threadIdx.x % WARP, rows = pairs ? 8 : TILE;
    const Segment &s = a.segments[tile.segment];
    auto sum = [&](uint32_t row, uint32_t t) {
        float y = 0.0f;
#pragma unroll 4
        for (uint32_t w = 0; w < a.warps_a_tile; w++) y += parts[(w * TILE + row) * T + t];
        return y;
    };
    for (uint32_t k = lane; k < rows * a.n_tokens; k += WARP) {
        float *to = result_of(a, tile, slot, k);
        if (!to) continue;
        const uint32_t in_tile = k % rows, t = k / rows, row = tile.row + in_tile;
        const float factor = T == 1 ? only : late_factor(a, squares[t]);
        float y = sum(in_tile, t) * factor + (s.bias ? s.bias[(size_t)expert * s.rows + row] : 0.0f);
        if (pairs) {
            const Segment &up = a.segments[1];
            y = gated(a.activation, y, sum(in_tile + 8, t) * factor + (up.bias ? up.bias[(size_t)expert * up.rows + row] : 0.0f), a.alpha, a.limit);
        } else if (a.epilogue == PLAIN) {
            y = activate(a.activation, y);
        }
        y = finish(a, y);
        *to = a.epilogue == ADD ? (k == lane ? old : *to) + y : y;
    }
}

// The warps of a tile wait for one another.
__device__ __forceinline__ void await_warps(uint32_t barrier, uint32_t warps) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(warps * WARP) : "memory");
}

template <class F, class G, int T>
__device__ __forceinline__ void matvec(const Matvec &a) {
    extern __shared__ __align__(16) u8 shared[];
    __shared__ float room[WARPS];
    __shared__ __align__(16) float squares[T][WARPS];
    __shared__ __align__(16) u8 zeros[400];
    constexpr uint32_t SLOT = slot_bytes<F>() > slot_bytes<G>() ? slot_bytes<F>() : slot_bytes<G>();
    const uint32_t warp = __shfl_sync(ALL, threadIdx.x / WARP, 0), lane = threadIdx.x % WARP, of_tile = warp % a.warps_a_tile, which = warp / a.warps_a_tile;
    const uint32_t octets = (a.cols + 255) / 256, stride = staged_bytes<F, G>(octets), stages = a.stages;
    u8 *slots = shared + a.n_tokens * stride + warp * stages * SLOT;
    float *parts = (float *)(shared + a.n_tokens * stride + a.tiles_a_pass * a.warps_a_tile * stages * SLOT);
    let_next_start();
    if (a.experts) wait_for_inputs();  // which weights are read is an input too
    const uint32_t slot = blockIdx.y, expert = a.experts ? a.experts[slot] : 0;

    // each block takes tiles in turn; neighbouring ones go to different multiprocessors
    const uint32_t step = gridDim.x * a.tiles_a_pass;
    const uint32_t mine = which < a.tiles_a_pass && of_tile < octets ? which * gridDim.x + blockIdx.x : a.n_tiles;
    const uint32_t ring = (uint32_t)__cvta_generic_to_shared(slots);
    uint32_t ahead_tile = mine, ahead_octet = of_tile, filled = 0;
    Tile ahead = tile_of(a, mine);
    auto fetch = [&]() {
        if (ahead_tile < a.n_tiles) {
            const uint32_t to = ring + filled * SLOT;
            if (SAME<F, G> || ahead.segment < a.second_from) {
                copy_octet<F>(a, ahead, expert, ahead_octet, to);
            } else {
                copy_octet<G>(a, ahead, expert, ahead_octet, to);
            }
            filled = filled + 1 == stages ? 0 : filled + 1;
            ahead_octet += a.warps_a_tile;
            if (ahead_octet >= octets) ahead_octet = of_tile, ahead_tile += step, ahead = tile_of(a, ahead_tile);
        }
        close_group();
    };
    const uint32_t first_token = a.experts ? slot / a.slots_a_token : 0;
    const Lane l = {lane / 4, lane % 4, zeros, lane / 8 == lane % 4};
    float acc[T][2], factor = 1.0f;
#pragma unroll
    for (int t = 0; t < T; t++) acc[t][0] = 0.0f, acc[t][1] = 0.0f;
    uint32_t at = which < a.tiles_a_pass ? which * gridDim.x + blockIdx.x : a.n_tiles, octet = of_tile, current = 0, turn = 0;
    // the ring is filled first; then x is brought in; then an octet is worked on for each that is asked for
#pragma unroll 1
    for (uint32_t asked = 1;; asked++) {
        fetch();
        if (asked < stages) continue;
        if (asked == stages) {
            if (threadIdx.x < 100) ((uint32_t *)zeros)[threadIdx.x] = 0;
            stage_x<F, G>(a, first_token, octets, shared, squares, room);
            __syncthreads();
            factor = late_factor(a, squares[0]);
        }
        if (at >= a.n_tiles) break;
        if (octet < octets) {
            await_groups(stages - 1);
            __syncwarp();
            const u8 *have = slots + current * SLOT;
            if (SAME<F, G> || tile_of(a, at).segment < a.second_from) {
                multiply_octet<F, T>(l, have, shared + octet * Octet<F>::BYTES, stride, a.n_tokens, acc);
            } else {
                multiply_octet<G, T>(l, have, shared + octets * Octet<F>::BYTES + octet * Octet<G>::BYTES, stride, a.n_tokens, acc);
            }
            current = current + 1 == stages ? 0 : current + 1;
            __syncwarp();
        }
        octet += a.warps_a_tile;
        if (octet < octets) continue;
        // the tile's last octet
        const bool stores = turn % a.warps_a_tile == of_tile;
        const float *first = stores && a.epilogue == ADD ? result_of(a, tile_of(a, at), slot, lane) : nullptr;
        const float old = first ? *first : 0.0f;
        float *left = parts + ((turn % 2 * a.tiles_a_pass + which) * a.warps_a_tile + of_tile) * TILE * T;
#pragma unroll
        for (int t = 0; t < T; t++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float v = acc[t][r];
                v += __shfl_xor_sync(ALL, v, 1);
                v += __shfl_xor_sync(ALL, v, 2);
                if (l.t == t % 4) left[(l.g + 8 * r) * T + t] = v;
                acc[t][r] = 0.0f;
            }
        }
        await_warps(1 + which, a.warps_a_tile);
        if (stores) store_tile<T>(a, tile_of(a, at), slot, expert, left - of_tile * TILE * T, squares, factor, old);
        at += step, turn++, octet = of_tile;
    }
}

// Names for the host: matvec_Q4_K_1 is for one token, matvec_Q4_K_Q6_K_1 for segments of the two types.
#define INSTANCE(NAME, F, G, T, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(WARPS * WARP, BLOCKS) matvec_##NAME##_##T(const __grid_constant__ Matvec a) { matvec<F, G, T>(a); }
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
