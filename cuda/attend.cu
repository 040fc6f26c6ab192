// Attention of a few tokens over pages: splits of the positions in parallel, combined by the block that comes last.
//
//   out[t][h] = sum_p softmax_p(cap(scale * q[t][h] . k[p][h / group])) v[p][h / group],  p from the window's start to the token's own position
//
// with softcap(s) = cap * tanh(s / cap) where there is one, and a sink, a logit per head that takes part in the softmax and has no value.
// Shapes: q (n_tokens, q_stride), out (n_tokens, out_stride), pages as rope.cuh tells. Bytes moved: keys and values of the positions, once
// for all heads of a group. A split is SPLIT positions from a multiple of SPLIT on, so that a token's bits depend on its own positions alone.
// Grid (n_kv_heads, splits, n_tokens); partial results (n_tokens, n_heads, max_splits): largest score, sum of exponentials, weighted values.
//
// Keys and values come through a ring in shared memory, a piece at a time: some columns of the split's keys, then some of its values. What
// earlier steps have stored does not depend on the kernel before, nor does the step's header, so that the first pieces are asked for before
// that has ended: no kernel of a step starts before the copy of the header is there, which follows all of the step before.
//
// A team is SPLIT threads; the heads of a group are dealt out among the teams of a block, which share its pieces. Each line of code runs a few
// times and has to be fetched first, so that there is one loop over pieces, not unrolled further than loads need.
//
// Of a step of one token, `turns`, a block turns the queries of its group itself, and the block whose split has the token's own position
// turns the key and stores key and value: nobody else reads them in this launch.
#include "rope.cuh"

#define SPLIT 128u

struct Attend {
    const Step *step;
    const float *q;
    const u8 *pool;
    float *partial;     // (n_tokens, n_heads, max_splits, wide + 4)
    float *out;
    const float *sinks;  // (n_heads), or null
    uint32_t *arrived;   // (n_tokens, n_kv_heads), zero between launches
    uint64_t page_elements, layer_offset;
    uint32_t n_heads, n_kv_heads, head_dim, wide;
    uint32_t q_stride, out_stride;
    uint32_t max_splits;
    uint32_t window;  // positions that a token sees, its own included; 0 for all
    float scale, softcap;
    uint32_t first_token;  // of the step: blockIdx.z counts from it
    uint32_t slots;        // of the ring
    uint32_t turns;
    uint32_t group;  // n_heads / n_kv_heads
    Rope turn;  // where `turns` is not 0
};

// Eight neighbours in shared memory, loaded first and widened when they are there.
template <class E>
struct Eight;

template <>
struct Eight<__half> {
    uint4 raw;
    __device__ __forceinline__ void load(const __half *from, const __half *) { raw = *(const uint4 *)from; }
    __device__ __forceinline__ void widen(float *to) const {
        const uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 f = __half22float2(*(const __half2 *)&w[i]);
            to[2 * i] = f.x, to[2 * i + 1] = f.y;
        }
    }
};

template <>
struct Eight<float> {
    float4 a, b;
    __device__ __forceinline__ void load(const float *from, const __half *) { a = *(const float4 *)from, b = *(const float4 *)(from + 4); }
    __device__ __forceinline__ void widen(float *to) const {
        to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
    }
};

// Products of a byte and a scale are exact. A byte becomes the last of the float 2^23 + byte.
template <>
struct Eight<int8_t> {
    uint2 raw;
    __half scale;
    __device__ __forceinline__ void load(const int8_t *from, const __half *s) { raw = *(const uint2 *)from, scale = *s; }
    __device__ __forceinline__ void widen(float *to) const {
        const float s = __half2float(scale);
        const uint32_t w[2] = {raw.x ^ 0x80808080u, raw.y ^ 0x80808080u};
#pragma unroll
        for (int i = 0; i < 8; i++) to[i] = (__uint_as_float(__byte_perm(w[i / 4], 0x4b000000u, 0x7540 | i % 4)) - 8388736.0f) * s;
    }
};

__device__ __forceinline__ void copy16(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most so many groups of this thread's copies are under way.
__device__ __forceinline__ void wait_for_copies(uint32_t under_way) {
    switch (under_way) {
        case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
        case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
        case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
        default: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    }
}

// How a split is cut into pieces. Scales lie behind a piece's elements.
template <class E, uint32_t W>
struct Cut {
    static constexpr uint32_t COLUMNS = SCALED<E> ? 128 : 128 / sizeof(E), KEY_BYTES = SPLIT * COLUMNS * sizeof(E);
    static constexpr uint32_t BYTES = SCALED<E> ? KEY_BYTES + KEY_BYTES / 16 : KEY_BYTES;
    static constexpr __host__ __device__ uint32_t rows_of(uint32_t wide) {
        const uint32_t fit = BYTES / (wide * sizeof(E) + (SCALED<E> ? wide / 16 : 0)), whole = SCALED<E> ? fit & ~7u : fit;
        return whole < SPLIT ? whole : SPLIT;
    }
    uint32_t wide, key_pieces, rows, pieces;
    __device__ __forceinline__ explicit Cut(uint32_t of) : wide(W ? W : of), rows(rows_of(W ? W : of)) {
        key_pieces = (wide + COLUMNS - 1) / COLUMNS;
        pieces = key_pieces + (SPLIT + rows - 1) / rows;
    }
};

// The copies of a block: its splits from the first to the last, piece by piece, into the slots of the ring in turn.
template <class E, uint32_t W, uint32_t THREADS>
struct Feed {
    const Attend &a;
    const Cut<E, W> cut;
    u8 *ring;
    uint32_t oldest, end, last;  // positions that are there: oldest .. end
    uint32_t split, piece, slot, next_page;
    const uint32_t *pages;
    const E *page;  // of the split and head

    __device__ __forceinline__ uint32_t page_of(uint32_t split) const { return split <= last ? __ldcg(pages + split * SPLIT / PAGE) : 0; }

    __device__ __forceinline__ const E *head_in(uint32_t page) const {
        return (const E *)a.pool + page * a.page_elements + a.layer_offset + (size_t)blockIdx.x * 2 * part_elements<E>(cut.wide);
    }

    __device__ __forceinline__ Feed(const Attend &a, const uint32_t *pages, u8 *ring, uint32_t first, uint32_t last, uint32_t oldest, uint32_t end)
        : a(a), cut(a.wide), ring(ring), oldest(oldest), end(end), last(last), split(first), piece(0), slot(0), pages(pages) {
        next_page = page_of(split);
    }

    __device__ __forceinline__ uint32_t low() const { return oldest > split * SPLIT ? oldest - split * SPLIT : 0; }
    __device__ __forceinline__ uint32_t high() const { return min(end - split * SPLIT, SPLIT); }

    // Units of 16 bytes: SPLIT of them in a row, the next ones `step` bytes further on. Asked for are those whose number, of keys that of the
    // position, lies in from .. end.
    __device__ __forceinline__ void copy(u8 *to, const u8 *at, uint32_t step, uint32_t number_mask, uint32_t from, uint32_t end, uint32_t units) const {
#pragma unroll
        for (uint32_t k = 0; k < Cut<E, W>::KEY_BYTES / 16 / THREADS; k++) {
            const uint32_t i = threadIdx.x + k * THREADS, number = i & number_mask;
            if (i < units && number >= from && number < end) copy16(to + 16 * i, at + i / SPLIT * step + i % SPLIT * 16);
        }
    }

    // Scales of keys of some columns, as `copy`.
    __device__ __forceinline__ void key_scales(u8 *to, uint32_t c0, uint32_t chunks, uint32_t lo, uint32_t hi) const {
        const __half *scales = (const __half *)(page + cut.wide * PAGE) + c0 / 4 * PAGE + split * SPLIT % PAGE;
        for (uint32_t i = threadIdx.x; i < chunks / 4 * 16; i += THREADS)
            if (i % 16 * 8 + 7 >= lo && i % 16 * 8 < hi) copy16(to + Cut<E, W>::KEY_BYTES + 16 * i, scales + i / 16 * PAGE + i % 16 * 8);
    }

    // Scales of values of some rows: whole units of 16 bytes, scales of eight rows are some of them.
    __device__ __forceinline__ void value_scales(u8 *to, const E *part, uint32_t r0, uint32_t begin, uint32_t stop) const {
        const uint32_t of_row = cut.wide / 16, first = begin & ~7u, bytes = ((stop + 7 & ~7u) - first) * of_row;
        const u8 *scales = (const u8 *)(part + cut.wide * PAGE) + (size_t)(split * SPLIT % PAGE + first) * of_row;
        to += cut.rows * cut.wide + (first - r0) * of_row;
        for (uint32_t i = 16 * threadIdx.x; i < bytes; i += 16 * THREADS) copy16(to + i, scales + i);
    }

    __device__ __forceinline__ void ask_piece(u8 *to) const {
        constexpr uint32_t UNITS = SPLIT * 8 * sizeof(E) / 16;  // of eight columns
        const uint32_t lo = low(), hi = high(), first = split * SPLIT % PAGE;
        if (piece < cut.key_pieces) {
            const uint32_t c0 = piece * (Cut<E, W>::COLUMNS / 8), chunks = min(Cut<E, W>::COLUMNS / 8, cut.wide / 8 - c0);
            const u8 *at = (const u8 *)(page + ((size_t)c0 * PAGE + first) * 8);
            if (UNITS == SPLIT) {
                copy(to, at, 8 * PAGE * sizeof(E), UNITS - 1, lo, hi, chunks * UNITS);
            } else {
#pragma unroll 1
                for (uint32_t i = threadIdx.x; i < chunks * UNITS; i += THREADS) {
                    const uint32_t u = i % UNITS;
                    if ((16 * u + 15) / (8 * sizeof(E)) >= lo && 16 * u / (8 * sizeof(E)) < hi) copy16(to + 16 * i, at + i / UNITS * (PAGE * 8 * sizeof(E)) + 16 * u);
                }
            }
            if constexpr (SCALED<E>) key_scales(to, c0, chunks, lo, hi);
        } else {
            const uint32_t r0 = (piece - cut.key_pieces) * cut.rows, begin = max(r0, lo), stop = min(min(r0 + cut.rows, SPLIT), hi);
            if (begin >= stop) return;
            const uint32_t row = cut.wide * sizeof(E) / 16;
            const E *part = page + part_elements<E>(cut.wide);
            copy(to, (const u8 *)(part + (size_t)(first + r0) * cut.wide), 16 * SPLIT, ~0u, (begin - r0) * row, (stop - r0) * row, ~0u);
            if constexpr (SCALED<E>) value_scales(to, part, r0, begin, stop);
        }
    }

    // Asks for the next piece; one group of copies, also where nothing is left.
    __device__ __forceinline__ void ask() {
        if (split <= last) {
            if (piece == 0) page = head_in(next_page), next_page = page_of(split + gridDim.y);
            u8 *to = ring + slot * Cut<E, W>::BYTES;
            ask_piece(to);
            if (++piece == cut.pieces) piece = 0, split += gridDim.y;
        }
        commit_copies();
        slot = slot + 1 == a.slots ? 0 : slot + 1;
    }

    // Values that the ring has no room for yet come nearer at least.
    __device__ __forceinline__ void prefetch_values() const {
#if __CUDA_ARCH__ >= 900
        const uint32_t lo = low(), hi = high(), row = cut.wide * sizeof(E);
        if (threadIdx.x != 0 || lo >= hi || cut.pieces <= a.slots) return;
        const u8 *from = (const u8 *)(head_in(next_page) + part_elements<E>(cut.wide)) + (size_t)(split * SPLIT % PAGE + lo) * row;
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"((hi - lo) * row) : "memory");
#endif
    }
};

// What a block works in.
struct Room {
    u8 *ring;
    float *shares;    // (teams, up to 2 heads, ways, wide)
    float *heads;     // (G + 2, wide): queries, zeros where the group has fewer, then the token's own key and value
    float *p;         // (teams, SPLIT, heads of a team)
    float *stats;     // (teams, 2, heads of a team, 4)
    float2 *angles;   // (dims / 2)
    float *norms;     // (2, head_dim)
    u8 *own;          // the token's own key and value as they are stored
    uint32_t own_bytes;  // of each
};

// Where the partial result of a split lies.
__device__ __forceinline__ float *partial_at(const Attend &a, uint32_t t, uint32_t head, uint32_t split) {
    return a.partial + (((size_t)t * a.n_heads + head) * a.max_splits + split) * (a.wide + 4);
}

// The pieces of a ring as they are worked on.
template <class E, uint32_t W, uint32_t THREADS>
struct Pieces {
    Feed<E, W, THREADS> &feed;
    uint32_t taken, slot;

    // The next piece, there for all threads; the slot of the one before is asked for anew.
    __device__ __forceinline__ const u8 *next() {
        wait_for_copies(feed.a.slots - (taken == 0 ? 1 : 2));
        __syncthreads();
        if (taken != 0) feed.ask();
        const u8 *at = feed.ring + slot * Cut<E, W>::BYTES;
        taken = 1, slot = slot + 1 == feed.a.slots ? 0 : slot + 1;
        return at;
    }
};

template <int G>
__device__ __forceinline__ void load_weights(const float *from, float (&to)[G]) {
    if constexpr (G % 4 == 0) {
#pragma unroll
        for (int g = 0; g < G; g += 4) {
            const float4 v = *(const float4 *)(from + g);
            to[g] = v.x, to[g + 1] = v.y, to[g + 2] = v.z, to[g + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int g = 0; g < G; g++) to[g] = from[g];
    }
}

// What a piece of the keys adds to the scores, a thread a position: sums of columns that are even, and odd.
template <class E, int G, uint32_t W>
__device__ __forceinline__ void score_piece(const Room &room, const Cut<E, W> &cut, const u8 *piece, uint32_t first, bool own, float (&sums)[G][2]) {
    const uint32_t wide = cut.wide, place = threadIdx.x % SPLIT;
    const float *queries = room.heads + threadIdx.x / SPLIT * G * wide + first;
    const E *key = own ? (const E *)room.own + first : (const E *)piece + 8 * place;
    const __half *scale = own ? (const __half *)((const E *)room.own + wide) + first / 32 : (const __half *)(piece + Cut<E, W>::KEY_BYTES) + place;
    const uint32_t step = own ? 8 : 8 * SPLIT, scale_step = own ? 1 : SPLIT;
    constexpr bool WHOLE = W && W % Cut<E, W>::COLUMNS == 0;
    const uint32_t chunks = WHOLE ? Cut<E, W>::COLUMNS / 8 : min(Cut<E, W>::COLUMNS, wide - first) / 8;
#pragma unroll 4
    for (uint32_t c = 0; c < chunks; c++) {
        Eight<E> k8;
        float k[8];
        k8.load(key + c * step, scale + c / 4 * scale_step);
        k8.widen(k);
#pragma unroll
        for (int g = 0; g < G; g++) {
            const float *qg = queries + g * wide + 8 * c;
            const float4 q0 = *(const float4 *)qg, q1 = *(const float4 *)(qg + 4);
            sums[g][0] = fmaf(q0.x, k[0], sums[g][0]), sums[g][1] = fmaf(q0.y, k[1], sums[g][1]);
            sums[g][0] = fmaf(q0.z, k[2], sums[g][0]), sums[g][1] = fmaf(q0.w, k[3], sums[g][1]);
            sums[g][0] = fmaf(q1.x, k[4], sums[g][0]), sums[g][1] = fmaf(q1.y, k[5], sums[g][1]);
            sums[g][0] = fmaf(q1.z, k[6], sums[g][0]), sums[g][1] = fmaf(q1.w, k[7], sums[g][1]);
        }
    }
}

// Scores become exponentials, in `p`; the largest score and the sum of each warp lie in `stats`.
template <int G>
__device__ __forceinline__ void soften(const Attend &a, const Room &room, bool visible, const float (&sums)[G][2]) {
    const uint32_t warp = threadIdx.x % SPLIT / WARP;
    float *stats = room.stats + threadIdx.x / SPLIT * 8 * G, *p = room.p + threadIdx.x * G;
    float score[G], of_warp[G];
#pragma unroll
    for (int g = 0; g < G; g++) score[g] = (sums[g][0] + sums[g][1]) * a.scale;
    if (a.softcap > 0.0f) {
#pragma unroll
        for (int g = 0; g < G; g++) score[g] = a.softcap * tanhf(score[g] / a.softcap);
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
        score[g] = visible ? score[g] : -INFINITY;
        of_warp[g] = warp_max(score[g]);
    }
    if (threadIdx.x % WARP == 0) {
#pragma unroll
        for (int g = 0; g < G; g++) stats[g * 4 + warp] = of_warp[g];
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < G; g++) {
        const float4 r = *(const float4 *)(stats + g * 4);
        const float largest = fmaxf(fmaxf(r.x, r.y), fmaxf(r.z, r.w));
        const float e = visible ? expf(score[g] - largest) : 0.0f;
        p[g] = e;
        of_warp[g] = warp_sum(e);
    }
    if (threadIdx.x % WARP == 0) {
#pragma unroll
        for (int g = 0; g < G; g++) stats[4 * G + g * 4 + warp] = of_warp[g];
    }
}

// What a piece of the values adds, rows from r0 on, of positions start .. stop of a split; `own` is the token's own, or none. Eight columns a
// thread, positions dealt out among the threads of the same columns.
template <class E, int G, uint32_t W>
__device__ __forceinline__ void weigh_piece(const Room &room, const Cut<E, W> &cut, const u8 *piece, uint32_t r0, uint32_t start, uint32_t stop, uint32_t own, float (&acc)[G][8]) {
    const uint32_t wide = cut.wide, lanes = wide / 8, ways = SPLIT / lanes, place = threadIdx.x % SPLIT, c = place % lanes, way = place / lanes;
    const float *p = room.p + threadIdx.x / SPLIT * SPLIT * G;
    const E *own_value = (const E *)(room.own + room.own_bytes);
    const uint32_t begin = max(r0, start), end = way < ways ? min(r0 + cut.rows, stop) : 0;
    // a way goes on where it was in the piece before
#pragma unroll 4
    for (uint32_t i = begin + (way + ways - begin % ways) % ways; i < end; i += ways) {
        const E *value = i == own ? own_value : (const E *)piece + (i - r0) * wide;
        const __half *scale = i == own ? (const __half *)(own_value + wide) : (const __half *)((const E *)piece + cut.rows * wide) + (i - r0) * (wide / 32);
        Eight<E> v8;
        float v[8], e[G];
        v8.load(value + 8 * c, scale + c / 4);
        load_weights<G>(p + i * G, e);
        v8.widen(v);
#pragma unroll
        for (int g = 0; g < G; g++) {
#pragma unroll
            for (int n = 0; n < 8; n++) acc[g][n] = fmaf(e[g], v[n], acc[g][n]);
        }
    }
}

// Four columns of a head's result.
template <uint32_t W>
__device__ __forceinline__ void store_four(const Attend &a, float *to, uint32_t column, float4 v) {
    if (W) {
        *(float4 *)(to + column) = v;
        return;
    }
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (uint32_t k = 0; k < 4; k++)
        if (column + k < a.head_dim) to[column + k] = values[k];
}

// Adds the shares of the ways in their order: the result, where there is one split, or a part of it.
template <int G, uint32_t W>
__device__ __forceinline__ void finish_split(const Attend &a, const Room &room, uint32_t t, uint32_t split, bool alone, const float (&acc)[G][8]) {
    const uint32_t wide = W ? W : a.wide, team = threadIdx.x / SPLIT, place = threadIdx.x % SPLIT;
    const uint32_t lanes = wide / 8, ways = SPLIT / lanes, c = place % lanes, way = place / lanes;
    const float *stats = room.stats + team * 8 * G;
    float *shares = room.shares + team * min(G, 2) * ways * wide;
#pragma unroll
    for (int g0 = 0; g0 < G; g0 += 2) {
        if (g0 > 0) __syncthreads();
#pragma unroll
        for (int g = g0; g < g0 + 2 && g < G; g++) {
            float *to = shares + ((g - g0) * ways + way) * wide + 8 * c;
            if (way < ways) {
                *(float4 *)to = make_float4(acc[g][0], acc[g][1], acc[g][2], acc[g][3]);
                *(float4 *)(to + 4) = make_float4(acc[g][4], acc[g][5], acc[g][6], acc[g][7]);
            }
        }
        __syncthreads();
        for (uint32_t i = place; i < min(G - g0, 2) * wide / 4; i += SPLIT) {
            const uint32_t of = i / (wide / 4), column = i % (wide / 4) * 4, g = g0 + of, in_group = team * G + g, h = blockIdx.x * a.group + in_group;
            if (in_group >= a.group) break;
            float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
            for (uint32_t w = 0; w < ways; w++) {
                const float4 share = *(const float4 *)(shares + (of * ways + w) * wide + column);
                v.x += share.x, v.y += share.y, v.z += share.z, v.w += share.w;
            }
            const float4 r = *(const float4 *)(stats + g * 4), s = *(const float4 *)(stats + 4 * G + g * 4);
            const float largest = fmaxf(fmaxf(r.x, r.y), fmaxf(r.z, r.w)), sum = (s.x + s.y) + (s.z + s.w);
            if (alone) {
                // as `combine` does with one split
                const float top = a.sinks ? fmaxf(a.sinks[h], largest) : largest, factor = expf(largest - top);
                const float all = fmaf(sum, factor, a.sinks ? expf(a.sinks[h] - top) : 0.0f);
                const float share = factor / all;
                const float4 whole = make_float4(v.x * share, v.y * share, v.z * share, v.w * share);
                store_four<W>(a, a.out + (size_t)t * a.out_stride + h * a.head_dim, column, whole);
            } else {
                float *to = partial_at(a, t, h, split);
                *(float4 *)(to + 4 + column) = v;
                if (column == 0) *(float2 *)to = make_float2(largest, sum);
            }
        }
    }
}

// The splits of a head, combined in their order by one warp: 128 columns at a time, as many splits as there is room for.
template <uint32_t W>
__device__ __forceinline__ void combine(const Attend &a, uint32_t t, uint32_t h, uint32_t first, uint32_t last, float *room, uint32_t fit) {
    constexpr uint32_t ROW = 4 + 128;
    const uint32_t lane = threadIdx.x % WARP, wide = W ? W : a.wide, row = wide + 4;
    const float *of = partial_at(a, t, h, 0), sink = a.sinks ? a.sinks[h] : -INFINITY;
    float largest = sink;
#pragma unroll 1
    for (uint32_t c0 = 0; c0 < wide; c0 += 128) {
        const bool mine = c0 + 4 * lane < wide;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float sum = 0.0f;
#pragma unroll 1
        for (uint32_t s0 = first; s0 <= last; s0 += fit) {
            const uint32_t n = min(fit, last + 1 - s0);
#pragma unroll 1
            for (uint32_t i = lane; i < n; i += WARP) copy16(room + i * ROW, of + (size_t)(s0 + i) * row);
#pragma unroll 2
            for (uint32_t i = mine ? 0 : n; i < n; i++) copy16(room + i * ROW + 4 + 4 * lane, of + (size_t)(s0 + i) * row + 4 + c0 + 4 * lane);
            commit_copies();
            if (c0 == 0 && s0 == first) {
#pragma unroll 1
                for (uint32_t s = first + lane; s <= last; s += WARP) largest = fmaxf(largest, __ldcg(of + (size_t)s * row));
                largest = warp_max(largest);
            }
            if (s0 == first) sum = a.sinks ? expf(sink - largest) : 0.0f;
            wait_for_copies(0);
            __syncwarp();
#pragma unroll 1
            for (uint32_t i = lane; i < n; i += WARP) room[i * ROW] = expf(room[i * ROW] - largest);
            __syncwarp();
#pragma unroll 4
            for (uint32_t i = 0; i < n; i++) {
                const float *at = room + i * ROW;
                const float2 s = *(const float2 *)at;
                sum = fmaf(s.y, s.x, sum);
                if (!mine) continue;
                const float4 w = *(const float4 *)(at + 4 + 4 * lane);
                v.x = fmaf(w.x, s.x, v.x), v.y = fmaf(w.y, s.x, v.y), v.z = fmaf(w.z, s.x, v.z), v.w = fmaf(w.w, s.x, v.w);
            }
            __syncwarp();
        }
        const float share = 1.0f / sum;
        if (mine) store_four<W>(a, a.out + (size_t)t * a.out_stride + h * a.head_dim, c0 + 4 * lane, make_float4(v.x * share, v.y * share, v.z * share, v.w * share));
    }
}

// Weights of the norms, before the kernel before has ended.
__device__ __forceinline__ void fetch_norms(const Rope &a, float *norms) {
    for (uint32_t i = threadIdx.x; i < a.head_dim; i += blockDim.x) {
        if (a.q_norm) norms[i] = a.q_norm[i];
        if (a.k_norm) norms[a.head_dim + i] = a.k_norm[i];
    }
}

// Queries of the group, and, where the block `owns` the token's position, its key and value: loaded, turned, stored. A warp a head.
template <class E, int G, uint32_t W, uint32_t THREADS>
__device__ __forceinline__ void prepare_heads(const Attend &a, const Room &room, uint32_t t, uint32_t position, bool owns, E *page) {
    constexpr uint32_t WARPS = THREADS / WARP, PARTS = (G + 2 + WARPS - 1) / WARPS, COLUMNS = W ? W / WARP : 4;
    const uint32_t kv_head = blockIdx.x, wide = W ? W : a.wide, dim = W ? W : a.head_dim, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const float *from = a.q + (size_t)t * a.q_stride + (size_t)kv_head * a.group * dim;
    for (uint32_t c0 = 0; c0 < wide; c0 += COLUMNS * WARP) {
        float v[PARTS][COLUMNS];  // asked for together
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            const uint32_t part = warp + i * WARPS;
            const bool is_q = part < G, there = is_q ? part < a.group : owns && part < G + 2;
            const float *head = is_q ? from + part * dim : (part == G ? a.turn.k : a.turn.v) + kv_head * dim;
#pragma unroll
            for (int k = 0; k < COLUMNS; k++) v[i][k] = there && c0 + k * WARP + lane < dim ? head[c0 + k * WARP + lane] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
#pragma unroll
            for (int k = 0; k < COLUMNS; k++)
                if (warp + i * WARPS < G + 2 && c0 + k * WARP + lane < wide) room.heads[(warp + i * WARPS) * wide + c0 + k * WARP + lane] = v[i][k];
        }
    }
    if (a.turns) {
        __syncwarp();
#pragma unroll 1
        for (uint32_t part = warp; part < G + (owns ? 2 : 0); part += WARPS) {
            const bool is_q = part < G, is_k = part == G;
            float *head = room.heads + part * wide;
            const bool normed = is_q ? a.turn.q_norm : a.turn.k_norm;
            if (part <= G) turn_head(a.turn, head, normed ? room.norms + (is_q ? 0 : a.head_dim) : nullptr, room.angles);
            if (!is_q) {
                E *of = is_k ? page : page + part_elements<E>(wide);
                store_head<E>(a.turn, head, is_k, of, position % PAGE, (E *)(room.own + (is_k ? 0 : room.own_bytes)));
            }
        }
    }
    __syncthreads();
}

// For so many teams of so many heads.
template <class E, uint32_t W>
__device__ __forceinline__ Room room_of(const Attend &a, uint32_t teams, uint32_t heads, u8 *shared) {
    const uint32_t built_for = teams * heads;
    const uint32_t wide = W ? W : a.wide, ways = SPLIT / (wide / 8);
    Room room;
    room.ring = shared;
    room.shares = (float *)(shared + a.slots * Cut<E, W>::BYTES);
    room.heads = room.shares + teams * min(heads, 2u) * ways * wide;
    room.p = room.heads + (built_for + 2) * wide;
    room.stats = room.p + SPLIT * built_for;
    room.norms = room.stats + 8 * built_for;
    room.angles = (float2 *)(room.norms + 2 * wide);
    room.own = (u8 *)(room.norms + 3 * wide);
    room.own_bytes = wide * sizeof(E) + (SCALED<E> ? wide / 16 + 15 & ~15u : 0);
    return room;
}

template <class E, int TEAMS, int G, uint32_t W>
__device__ __forceinline__ void attend(const Attend &a) {
    let_next_start();
    constexpr uint32_t THREADS = TEAMS * SPLIT;
    extern __shared__ __align__(16) u8 shared[];
    __shared__ uint32_t arrived;
    const uint32_t t = blockIdx.z, kv_head = blockIdx.x, group = a.group;
    const uint2 of_step = __ldcg((const uint2 *)a.step);
    const uint32_t *pages = (const uint32_t *)__ldcg((const unsigned long long *)&a.step->pages);
    const uint32_t begins = of_step.x, position = begins + a.first_token + t;
    if (a.first_token + t >= of_step.y) return;
    const uint32_t oldest = a.window && position + 1 > a.window ? position + 1 - a.window : 0;
    const uint32_t first = oldest / SPLIT, last = position / SPLIT;
    if (first + blockIdx.y > last) return;
    const Room room = room_of<E, W>(a, TEAMS, G, shared);
    Feed<E, W, THREADS> feed(a, pages, room.ring, first + blockIdx.y, last, oldest, a.turns ? position : position + 1);
    const uint32_t own_page = a.turns ? feed.page_of(last) : 0;
    const float frequency = a.turns ? first_frequency(a.turn) : 0.0f;
    // what earlier steps have stored may be asked for now: whether that is all that the ring has room for
    const bool early = a.turns || (feed.split + (a.slots - 1) / feed.cut.pieces * gridDim.y + 1) * SPLIT <= begins;
    if (!early) wait_for_inputs();
    if (early) feed.prefetch_values();
#pragma unroll 1
    for (uint32_t i = 0; i < a.slots; i++) feed.ask();
    const bool owns = a.turns && (last - first) % gridDim.y == blockIdx.y;
    if (a.turns) {
        fetch_norms(a.turn, room.norms);
        find_angles(a.turn, position, frequency, room.angles);
        __syncthreads();
    }
    wait_for_inputs();
    prepare_heads<E, TEAMS * G, W, THREADS>(a, room, t, position, owns, (E *)feed.head_in(own_page));

    Pieces<E, W, THREADS> pieces = {feed, 0, 0};
    for (uint32_t split = first + blockIdx.y; split <= last; split += gridDim.y) {
        const uint32_t begin = split * SPLIT, mine = begin + threadIdx.x % SPLIT;
        const bool visible = mine <= position && mine >= oldest;
        const uint32_t start = oldest > begin ? oldest - begin : 0, stop = min(SPLIT, position + 1 - begin), key_pieces = feed.cut.key_pieces;
        float sums[G][2], acc[G][8];
#pragma unroll
        for (int g = 0; g < G; g++) {
            sums[g][0] = sums[g][1] = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) acc[g][i] = 0.0f;
        }
#pragma unroll 1
        for (uint32_t i = 0; i < feed.cut.pieces; i++) {
            if (i == key_pieces) soften<G>(a, room, visible, sums);
            const u8 *piece = pieces.next();
            if (i < key_pieces) {
                if (visible) score_piece<E, G, W>(room, feed.cut, piece, i * Cut<E, W>::COLUMNS, a.turns && mine == position, sums);
            } else {
                weigh_piece<E, G, W>(room, feed.cut, piece, (i - key_pieces) * feed.cut.rows, start, stop, a.turns ? position - begin : SPLIT, acc);
            }
        }
        finish_split<G, W>(a, room, t, split, first == last, acc);
    }
    if (first == last) return;

    // the block that comes last combines what all have left
    __syncthreads();
    if (threadIdx.x == 0) {
        // what the block has written before the barrier comes first, what it reads after the next one comes last
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(arrived) : "l"(a.arrived + t * a.n_kv_heads + kv_head) : "memory");
    }
    __syncthreads();
    const uint32_t blocks = min(gridDim.y, last - first + 1);
    if (arrived + 1 != blocks) return;
    const uint32_t warp = threadIdx.x / WARP, warps = min(group, THREADS / WARP), all = (uint32_t)((float *)room.heads - (float *)room.ring);
    const uint32_t fit = all / warps / (4 + 128);
    for (uint32_t g = warp; warp < warps && g < group; g += warps) combine<W>(a, t, kv_head * group + g, first, last, (float *)room.ring + warp * fit * (4 + 128), fit);
    if (threadIdx.x == 0) a.arrived[t * a.n_kv_heads + kv_head] = 0;
}

// Heads of a group are dealt out among teams of SPLIT threads. Widths are those of most models; 0 for any.
#define INSTANCE(E, NAME, TEAMS, G, BLOCKS, ALL, W) \
    extern "C" __global__ void __launch_bounds__(TEAMS *SPLIT, BLOCKS) attend_##NAME##_##ALL##_##W(const __grid_constant__ Attend a) { attend<E, TEAMS, G, W>(a); }
#define GROUPS(E, NAME, W) INSTANCE(E, NAME, 1, 1, 4, 1, W) INSTANCE(E, NAME, 2, 2, 3, 4, W) INSTANCE(E, NAME, 2, 4, 2, 8, W) INSTANCE(E, NAME, 4, 4, 1, 16, W)
GROUPS(__half, f16, 0) GROUPS(__half, f16, 64) GROUPS(__half, f16, 128)
GROUPS(int8_t, q8_0, 0) GROUPS(int8_t, q8_0, 64) GROUPS(int8_t, q8_0, 128)
GROUPS(float, f32, 0)
