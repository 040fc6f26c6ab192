// How weights lie in device memory and how they are decoded: one struct a tensor type, twins of src/quant/.
//
// A matrix is split at load (split.cu) into planes, so that reads are aligned: plane p of a matrix holds, block after block, row after row,
// the bytes [offset, offset + bytes) of each block; which ones is told by `planes` in src/device/cuda/layout.rs and beside each struct here.
//
// A *unit* is what one lane decodes at once: UNIT weights, whose columns are column(u) + offset(i). Columns of activations in shared memory
// are padded by four floats every 2^PAD columns, so that neighbouring lanes, which read neighbouring units, meet no bank conflict.
// decode() gives the f32 value that the format defines, rounded as src/quant rounds it. The block formats are integers under scales, and
// ints() and scales() give those apart: weight i of a unit is d * (q[i] - OFFSET) - m, q in four bytes a word. Where the scales themselves are integers
// under one scale of 256 columns (NESTED), factors() gives those integers and whole() what they are under: weight i of a unit is then
// whole.x * s[g] * (q[i] - OFFSET) - whole.y * m[g], g = i / (UNIT / GROUPS).
// place() says of every fourth column of 128 which unit and word it is. octet(p) are the bytes of 256 columns of a row in plane p.
#pragma once
#include "common.cuh"

#define MAX_PLANES 4

// Where the planes of a matrix, or of one row of it, begin.
struct Planes {
    const u8 *p[MAX_PLANES];

    template <int P>
    __device__ __forceinline__ uint32_t u8_at(uint32_t byte) const { return __ldg(p[P] + byte); }
    template <int P>
    __device__ __forceinline__ uint32_t u16_at(uint32_t byte) const { return __ldg((const unsigned short *)(p[P] + byte)); }
    template <int P>
    __device__ __forceinline__ uint32_t u32_at(uint32_t byte) const { return __ldg((const unsigned int *)(p[P] + byte)); }
    template <int P>
    __device__ __forceinline__ uint2 u64_at(uint32_t byte) const { return __ldg((const uint2 *)(p[P] + byte)); }
    template <int P>
    __device__ __forceinline__ uint4 u128_at(uint32_t byte) const { return __ldg((const uint4 *)(p[P] + byte)); }
};

// The planes of a matrix and the bytes that a row takes in each.
struct Rows {
    Planes planes;
    uint32_t row_bytes[MAX_PLANES];
};

template <class F>
__device__ __forceinline__ Planes row_of(const Rows &m, size_t row) {
    Planes at;
#pragma unroll
    for (int p = 0; p < F::PLANES; p++) at.p[p] = m.planes.p[p] + row * m.row_bytes[p];
    return at;
}

// Which of the four units of 128 columns a column belongs to, and which word of the unit's integers.
struct Place {
    uint32_t unit, word;
};

// `Segment` of src/device/cuda/args.rs: one matrix, or some of its rows.
struct Segment {
    Rows weights;  // of experts: one after another
    float *out;                         // (n_tokens, out_stride)
    const float *bias;                  // (rows), or null; (n_experts, rows) for experts
    uint32_t rows;
    uint32_t out_stride;
};

// Integers 0..255 in the bytes of v, as floats minus `bias`: 0x4B000000 | b is 2^23 + b.
template <int K>
__device__ __forceinline__ float byte_to_float(uint32_t v, float bias) {
    return __uint_as_float(__byte_perm(v, 0x4B000000u, 0x7440 + K)) - (8388608.0f + bias);
}

__device__ __forceinline__ void bytes_to_floats(uint32_t v, float bias, float *w) {
    w[0] = byte_to_float<0>(v, bias);
    w[1] = byte_to_float<1>(v, bias);
    w[2] = byte_to_float<2>(v, bias);
    w[3] = byte_to_float<3>(v, bias);
}

__device__ __forceinline__ float half_bits(uint32_t b) { return __half2float(__ushort_as_half((unsigned short)b)); }


// Spreads the low four bits of v over bit `at` of four bytes.
__device__ __forceinline__ uint32_t spread4(uint32_t v, int at) {
    return ((v & 15u) * 0x00204081u & 0x01010101u) << at;
}

// The low and high halves of 16 bytes: 32 integers of four bits.
__device__ __forceinline__ void nibbles(const uint4 &quants, uint32_t *q) {
    const uint32_t v[4] = {quants.x, quants.y, quants.z, quants.w};
#pragma unroll
    for (int k = 0; k < 4; k++) q[k] = v[k] & 0x0f0f0f0fu, q[4 + k] = v[k] >> 4 & 0x0f0f0f0fu;
}

// ---- floats: units of 8 columns; rows are padded with zeros to a multiple of 32 -----------------------------------------------------

struct F32 {
    static constexpr int PLANES = 1;
    static constexpr int UNIT = 8, PAD = 5, GROUPS = 0;
    static constexpr bool MINS = false;
    struct Raw {
        uint4 a, b;
    };
    static __device__ __forceinline__ int column(int u) { return 8 * u; }
    static constexpr __host__ __device__ int offset(int i) { return i; }
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) { return {m.template u128_at<0>(u * 32), m.template u128_at<0>(u * 32 + 16)}; }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        w[0] = __uint_as_float(r.a.x), w[1] = __uint_as_float(r.a.y), w[2] = __uint_as_float(r.a.z), w[3] = __uint_as_float(r.a.w);
        w[4] = __uint_as_float(r.b.x), w[5] = __uint_as_float(r.b.y), w[6] = __uint_as_float(r.b.z), w[7] = __uint_as_float(r.b.w);
    }
};

struct F16 {
    static constexpr int PLANES = 1;
    static constexpr int UNIT = 8, PAD = 5, GROUPS = 0;
    static constexpr bool MINS = false;
    struct Raw {
        uint4 a;
    };
    static __device__ __forceinline__ int column(int u) { return 8 * u; }
    static constexpr __host__ __device__ int offset(int i) { return i; }
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) { return {m.template u128_at<0>(u * 16)}; }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const uint32_t v[4] = {r.a.x, r.a.y, r.a.z, r.a.w};
#pragma unroll
        for (int k = 0; k < 4; k++) w[2 * k] = half_bits(v[k] & 0xffffu), w[2 * k + 1] = half_bits(v[k] >> 16);
    }
};

struct BF16 {
    static constexpr int PLANES = 1;
    static constexpr int UNIT = 8, PAD = 5, GROUPS = 0;
    static constexpr bool MINS = false;
    typedef F16::Raw Raw;
    static __device__ __forceinline__ int column(int u) { return 8 * u; }
    static constexpr __host__ __device__ int offset(int i) { return i; }
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) { return F16::load(m, u); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const uint32_t v[4] = {r.a.x, r.a.y, r.a.z, r.a.w};
#pragma unroll
        for (int k = 0; k < 4; k++) w[2 * k] = __uint_as_float(v[k] << 16), w[2 * k + 1] = __uint_as_float(v[k] & 0xffff0000u);
    }
};

// ---- blocks of 32: a unit is a block -------------------------------------------------------------------------------------------------

struct Blocks32 {
    static constexpr int UNIT = 32, PAD = 5, GROUPS = 1;
    static constexpr bool MINS = false, NESTED = false;
    static constexpr int OFFSET = 0;
    static __device__ __forceinline__ int column(int u) { return 32 * u; }
    static constexpr __host__ __device__ int offset(int i) { return i; }
    static __device__ __forceinline__ Place place(uint32_t c) { return {c / 32, c % 32 / 4}; }
};

// Planes: quants (16 bytes), d (2).
struct Q4_0 : Blocks32 {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 16 : p == 2 ? 0 : 0; }
    struct Raw {
        uint4 q;
        uint32_t d;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) { return {m.template u128_at<0>(u * 16), m.template u16_at<1>(u * 2)}; }
    static constexpr int OFFSET = 8;
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { nibbles(r.q, q); }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *) { d[0] = half_bits(r.d); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const uint32_t q[4] = {r.q.x, r.q.y, r.q.z, r.q.w};
        const float d = half_bits(r.d);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            bytes_to_floats(q[k] & 0x0f0f0f0fu, 8.0f, w + 4 * k);
            bytes_to_floats(q[k] >> 4 & 0x0f0f0f0fu, 8.0f, w + 16 + 4 * k);
        }
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] *= d;
    }
};

// Planes: quants (16), d and m (4).
struct Q4_1 : Blocks32 {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 32 : p == 2 ? 0 : 0; }
    struct Raw {
        uint4 q;
        uint32_t dm;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) { return {m.template u128_at<0>(u * 16), m.template u32_at<1>(u * 4)}; }
    static constexpr bool MINS = true;
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { nibbles(r.q, q); }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *m) { d[0] = half_bits(r.dm & 0xffffu), m[0] = -half_bits(r.dm >> 16); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const uint32_t q[4] = {r.q.x, r.q.y, r.q.z, r.q.w};
        const float d = half_bits(r.dm & 0xffffu), m = half_bits(r.dm >> 16);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            bytes_to_floats(q[k] & 0x0f0f0f0fu, 0.0f, w + 4 * k);
            bytes_to_floats(q[k] >> 4 & 0x0f0f0f0fu, 0.0f, w + 16 + 4 * k);
        }
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] = fmaf(w[i], d, m);
    }
};

// The fifth bits of 32 weights are the bits of `high`.
__device__ __forceinline__ void five_bits(const uint4 &low, uint32_t high, float bias, float *w) {
    const uint32_t q[4] = {low.x, low.y, low.z, low.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        bytes_to_floats((q[k] & 0x0f0f0f0fu) | spread4(high >> (4 * k), 4), bias, w + 4 * k);
        bytes_to_floats((q[k] >> 4 & 0x0f0f0f0fu) | spread4(high >> (16 + 4 * k), 4), bias, w + 16 + 4 * k);
    }
}

__device__ __forceinline__ void five_bit_ints(const uint4 &low, uint32_t high, uint32_t *q) {
    nibbles(low, q);
#pragma unroll
    for (int k = 0; k < 8; k++) q[k] |= spread4(high >> (4 * k), 4);
}

// Planes: quants (16), fifth bits (4), d (2).
struct Q5_0 : Blocks32 {
    static constexpr int PLANES = 3;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 32 : p == 2 ? 16 : 0; }
    struct Raw {
        uint4 q;
        uint32_t h, d;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        return {m.template u128_at<0>(u * 16), m.template u32_at<1>(u * 4), m.template u16_at<2>(u * 2)};
    }
    static constexpr int OFFSET = 16;
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { five_bit_ints(r.q, r.h, q); }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *) { d[0] = half_bits(r.d); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const float d = half_bits(r.d);
        five_bits(r.q, r.h, 16.0f, w);
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] *= d;
    }
};

// Planes: quants (16), fifth bits (4), d and m (4).
struct Q5_1 : Blocks32 {
    static constexpr int PLANES = 3;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 32 : p == 2 ? 32 : 0; }
    struct Raw {
        uint4 q;
        uint32_t h, dm;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        return {m.template u128_at<0>(u * 16), m.template u32_at<1>(u * 4), m.template u32_at<2>(u * 4)};
    }
    static constexpr bool MINS = true;
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { five_bit_ints(r.q, r.h, q); }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *m) { d[0] = half_bits(r.dm & 0xffffu), m[0] = -half_bits(r.dm >> 16); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const float d = half_bits(r.dm & 0xffffu), m = half_bits(r.dm >> 16);
        five_bits(r.q, r.h, 0.0f, w);
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] = fmaf(w[i], d, m);
    }
};

// Planes: quants (32), d (2).
struct Q8_0 : Blocks32 {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 256 : p == 1 ? 16 : p == 2 ? 0 : 0; }
    struct Raw {
        uint4 a, b;
        uint32_t d;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        return {m.template u128_at<0>(u * 32), m.template u128_at<0>(u * 32 + 16), m.template u16_at<1>(u * 2)};
    }
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) {
        q[0] = r.a.x, q[1] = r.a.y, q[2] = r.a.z, q[3] = r.a.w, q[4] = r.b.x, q[5] = r.b.y, q[6] = r.b.z, q[7] = r.b.w;
    }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *) { d[0] = half_bits(r.d); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const uint32_t q[8] = {r.a.x, r.a.y, r.a.z, r.a.w, r.b.x, r.b.y, r.b.z, r.b.w};
        const float d = half_bits(r.d);
#pragma unroll
        for (int k = 0; k < 8; k++) bytes_to_floats(q[k] ^ 0x80808080u, 128.0f, w + 4 * k);
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] *= d;
    }
};

// Sixteen signed bytes, 128 added to each, as four words; four nibbles of v are looked up at once.
struct Table {
    uint32_t t[4];
};

// The entries for the even nibbles (lookup(v)) and the odd ones (lookup(v >> 4)) of four bytes.
__device__ __forceinline__ uint32_t lookup(const Table &t, uint32_t v) {
    uint32_t selector = v & 0x0f0f0f0fu;
    // gather the nibbles of four bytes into 16 bits: the selector of __byte_perm
    selector = (selector | selector >> 4) & 0x00ff00ffu;
    selector = (selector | selector >> 8) & 0xffffu;
    const uint32_t low = __byte_perm(t.t[0], t.t[1], selector & 0x7777u);
    const uint32_t high = __byte_perm(t.t[2], t.t[3], selector & 0x7777u);
    // bit 3 of each nibble chooses: byte k of `low` is 0..3, of `high` 4..7
    return __byte_perm(low, high, 0x3210u | (selector & 0x8888u) >> 1);
}

__device__ __forceinline__ void looked_up(const Table &t, const uint4 &quants, float *w) {
    const uint32_t q[4] = {quants.x, quants.y, quants.z, quants.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        bytes_to_floats(lookup(t, q[k]), 128.0f, w + 4 * k);
        bytes_to_floats(lookup(t, q[k] >> 4), 128.0f, w + 16 + 4 * k);
    }
}

__device__ __forceinline__ void looked_up_ints(const Table &t, const uint4 &quants, uint32_t *q) {
    const uint32_t v[4] = {quants.x, quants.y, quants.z, quants.w};
#pragma unroll
    for (int k = 0; k < 4; k++) q[k] = lookup(t, v[k]) ^ 0x80808080u, q[4 + k] = lookup(t, v[k] >> 4) ^ 0x80808080u;
}

// -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113, each plus 128.
__device__ __forceinline__ Table iq4_table() { return {{0x3f2d1801u, 0x766a5d4fu, 0xa6998d81u, 0xf1d9c5b5u}}; }

// Planes: quants (16), d (2).
struct IQ4_NL : Blocks32 {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 16 : p == 2 ? 0 : 0; }
    typedef Q4_0::Raw Raw;
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) { return Q4_0::load(m, u); }
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { looked_up_ints(iq4_table(), r.q, q); }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *) { d[0] = half_bits(r.d); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const float d = half_bits(r.d);
        looked_up(iq4_table(), r.q, w);
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] *= d;
    }
};

// Planes: quants (16), exponent (1). Values 0 1 2 3 4 6 8 12 and their negatives, times 2^(e - 128).
struct MXFP4 : Blocks32 {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 8 : p == 2 ? 0 : 0; }
    struct Raw {
        uint4 q;
        uint32_t e;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) { return {m.template u128_at<0>(u * 16), m.template u8_at<1>(u)}; }
    static __device__ __forceinline__ float scale(uint32_t e) {
        return __uint_as_float(e >= 2 ? (e - 1) << 23 : 0x00200000u << e);
    }
    static __device__ __forceinline__ Table table() { return {{0x83828180u, 0x8c888684u, 0x7d7e7f80u, 0x74787a7cu}}; }
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { looked_up_ints(table(), r.q, q); }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *) { d[0] = scale(r.e); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const float d = scale(r.e);
        looked_up(table(), r.q, w);
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] *= d;
    }
};

// ---- blocks of 256 -------------------------------------------------------------------------------------------------------------------

// Units of Q2_K, Q3_K and Q6_K: eight neighbours of each of four runs of 32, in one half of a block.
struct FourRuns {
    static constexpr int UNIT = 32, PAD = 7, GROUPS = 4;
    static constexpr bool MINS = false, NESTED = true;
    static constexpr int OFFSET = 0;
    static __device__ __forceinline__ int column(int u) { return 128 * (u / 4) + 8 * (u % 4); }
    static constexpr __host__ __device__ int offset(int i) { return 32 * (i / 8) + i % 8; }
    static __device__ __forceinline__ Place place(uint32_t c) { return {c % 32 / 8, c / 32 * 2 + c % 8 / 4}; }
};

// Planes: quants (64), scales (16), d and dmin (4).
struct Q2_K : FourRuns {
    static constexpr int PLANES = 3;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 64 : p == 1 ? 16 : p == 2 ? 4 : 0; }
    struct Raw {
        uint2 q, s;
        uint32_t dm, i;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        const uint32_t block = u / 8, half = u % 8 / 4, i = u % 4;
        return {m.template u64_at<0>(block * 64 + half * 32 + i * 8), m.template u64_at<1>(block * 16 + half * 8), m.template u32_at<2>(block * 4), (uint32_t)i};
    }
    static constexpr bool MINS = true;
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) {
#pragma unroll
        for (int j = 0; j < 4; j++) q[2 * j] = r.q.x >> (2 * j) & 0x03030303u, q[2 * j + 1] = r.q.y >> (2 * j) & 0x03030303u;
    }
    static __device__ __forceinline__ void factors(const Raw &r, int *s, int *m) {
        const uint32_t by = 8 * (r.i / 2), v[2] = {r.s.x >> by, r.s.y >> by};
#pragma unroll
        for (int j = 0; j < 4; j++) s[j] = v[j / 2] >> (16 * (j % 2)) & 15u, m[j] = v[j / 2] >> (16 * (j % 2) + 4) & 15u;
    }
    static __device__ __forceinline__ float2 whole(const Raw &r) { return make_float2(half_bits(r.dm & 0xffffu), half_bits(r.dm >> 16)); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const float d = half_bits(r.dm & 0xffffu), dmin = half_bits(r.dm >> 16);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t s = (j < 2 ? r.s.x : r.s.y) >> (16 * (j % 2) + 8 * (r.i / 2));
            const float ds = d * (float)(s & 15u), dm = dmin * (float)(s >> 4 & 15u);
            bytes_to_floats(r.q.x >> (2 * j) & 0x03030303u, 0.0f, w + 8 * j);
            bytes_to_floats(r.q.y >> (2 * j) & 0x03030303u, 0.0f, w + 8 * j + 4);
#pragma unroll
            for (int k = 0; k < 8; k++) w[8 * j + k] = fmaf(w[8 * j + k], ds, -dm);
        }
    }
};

// Planes: quants (64), third bits (32), scales (12), d (2).
struct Q3_K : FourRuns {
    static constexpr int PLANES = 4;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 64 : p == 1 ? 32 : p == 2 ? 12 : 4; }
    struct Raw {
        uint2 q, h;
        uint32_t s0, s1, s2, d, u;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        const uint32_t block = u / 8, half = u % 8 / 4, i = u % 4;
        return {m.template u64_at<0>(block * 64 + half * 32 + i * 8),
                m.template u64_at<1>(block * 32 + i * 8),
                m.template u32_at<2>(block * 12),
                m.template u32_at<2>(block * 12 + 4),
                m.template u32_at<2>(block * 12 + 8),
                m.template u16_at<3>(block * 4),
                (uint32_t)(u % 8)};
    }
    static constexpr int OFFSET = 4;
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t bit = r.u / 4 * 4 + j;
            q[2 * j] = (r.q.x >> (2 * j) & 0x03030303u) | (r.h.x >> bit & 0x01010101u) << 2;
            q[2 * j + 1] = (r.q.y >> (2 * j) & 0x03030303u) | (r.h.y >> bit & 0x01010101u) << 2;
        }
    }
    static __device__ __forceinline__ void factors(const Raw &r, int *s, int *) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t g = r.u / 4 * 8 + 2 * j + r.u % 4 / 2;
            const uint32_t low = ((g % 8 < 4 ? r.s0 : r.s1) >> (8 * (g % 4)) >> (g / 8 * 4)) & 15u;
            const uint32_t high = (r.s2 >> (8 * (g % 4)) >> (g / 4 * 2)) & 3u;
            s[j] = (int)(low | high << 4) - 32;
        }
    }
    static __device__ __forceinline__ float2 whole(const Raw &r) { return make_float2(half_bits(r.d), 0.0f); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const float d = half_bits(r.d);
        const uint32_t half = r.u / 4, i = r.u % 4;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            // group g of 16 weights: four bits in byte g % 8 (low halves, then high), two in byte 8 + g % 4
            const uint32_t g = half * 8 + 2 * j + i / 2;
            const uint32_t low = ((g % 8 < 4 ? r.s0 : r.s1) >> (8 * (g % 4)) >> (g / 8 * 4)) & 15u;
            const uint32_t high = (r.s2 >> (8 * (g % 4)) >> (g / 4 * 2)) & 3u;
            const float ds = d * ((float)(low | high << 4) - 32.0f);
            const uint32_t bit = 4 * half + j;
            bytes_to_floats((r.q.x >> (2 * j) & 0x03030303u) | (r.h.x >> bit & 0x01010101u) << 2, 4.0f, w + 8 * j);
            bytes_to_floats((r.q.y >> (2 * j) & 0x03030303u) | (r.h.y >> bit & 0x01010101u) << 2, 4.0f, w + 8 * j + 4);
#pragma unroll
            for (int k = 0; k < 8; k++) w[8 * j + k] *= ds;
        }
    }
};

// Planes: low bits (128), high bits (64), scales (16), d (2).
struct Q6_K : FourRuns {
    static constexpr int PLANES = 4;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 64 : p == 2 ? 16 : 4; }
    struct Raw {
        uint2 a, b, h, s;
        uint32_t d, i;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        const uint32_t block = u / 8, half = u % 8 / 4, i = u % 4;
        return {m.template u64_at<0>(block * 128 + half * 64 + i * 8),
                m.template u64_at<0>(block * 128 + half * 64 + 32 + i * 8),
                m.template u64_at<1>(block * 64 + half * 32 + i * 8),
                m.template u64_at<2>(block * 16 + half * 8),
                m.template u16_at<3>(block * 4),
                (uint32_t)i};
    }
    static constexpr int OFFSET = 32;
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) {
        // two bits of four weights each, brought to where they belong
        const uint32_t hx[4] = {r.h.x << 4, r.h.x << 2, r.h.x, r.h.x >> 2}, hy[4] = {r.h.y << 4, r.h.y << 2, r.h.y, r.h.y >> 2};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint2 low = j % 2 ? r.b : r.a;
            q[2 * j] = (low.x >> (4 * (j / 2)) & 0x0f0f0f0fu) | (hx[j] & 0x30303030u);
            q[2 * j + 1] = (low.y >> (4 * (j / 2)) & 0x0f0f0f0fu) | (hy[j] & 0x30303030u);
        }
    }
    static __device__ __forceinline__ void factors(const Raw &r, int *s, int *) {
        const uint32_t by = 8 * (r.i / 2), v[2] = {r.s.x >> by, r.s.y >> by};
#pragma unroll
        for (int j = 0; j < 4; j++) s[j] = (signed char)(v[j / 2] >> (16 * (j % 2)));
    }
    static __device__ __forceinline__ float2 whole(const Raw &r) { return make_float2(half_bits(r.d), 0.0f); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const float d = half_bits(r.d);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint2 low = j % 2 ? r.b : r.a;
            const uint32_t x = (low.x >> (4 * (j / 2)) & 0x0f0f0f0fu) | (r.h.x >> (2 * j) & 0x03030303u) << 4;
            const uint32_t y = (low.y >> (4 * (j / 2)) & 0x0f0f0f0fu) | (r.h.y >> (2 * j) & 0x03030303u) << 4;
            const int s = (int)((j < 2 ? r.s.x : r.s.y) >> (16 * (j % 2) + 8 * (r.i / 2)) << 24) >> 24;
            const float ds = d * (float)s;
            bytes_to_floats(x, 32.0f, w + 8 * j);
            bytes_to_floats(y, 32.0f, w + 8 * j + 4);
#pragma unroll
            for (int k = 0; k < 8; k++) w[8 * j + k] *= ds;
        }
    }
};

// Units of Q4_K and Q5_K: sixteen neighbours of each of two runs of 32.
struct TwoRuns {
    static constexpr int UNIT = 32, PAD = 6, GROUPS = 2;
    static constexpr bool MINS = true, NESTED = true;
    static constexpr int OFFSET = 0;
    static __device__ __forceinline__ int column(int u) { return 64 * (u / 2) + 16 * (u % 2); }
    static constexpr __host__ __device__ int offset(int i) { return 32 * (i / 16) + i % 16; }
    static __device__ __forceinline__ Place place(uint32_t c) { return {c / 64 * 2 + c % 32 / 16, c % 64 / 32 * 4 + c % 16 / 4}; }
};

// d, dmin and twelve bytes of scales and minima, six bits each, as Q4_K and Q5_K hold them: two scales and two minima, a byte each, of the
// groups 2c and 2c + 1, where c is which 64 of the 256 weights.
__device__ __forceinline__ uint2 six_bits(const uint4 &header, uint32_t c) {
    const uint32_t shift = 16 * (c % 2), a = header.y >> shift, b = header.z >> shift, low = header.w >> shift;
    return make_uint2(c < 2 ? a & 0x3f3fu : (low & 0x0f0fu) | (a & 0xc0c0u) >> 2, c < 2 ? b & 0x3f3fu : (low >> 4 & 0x0f0fu) | (b & 0xc0c0u) >> 2);
}

struct SixBits {
    float ds[2], dm[2];
    __device__ __forceinline__ SixBits(const uint4 &header, uint32_t c) {
        const float d = half_bits(header.x & 0xffffu), dmin = half_bits(header.x >> 16);
        const uint2 two = six_bits(header, c);
        ds[0] = d * (float)(two.x & 0xffu), ds[1] = d * (float)(two.x >> 8);
        dm[0] = dmin * (float)(two.y & 0xffu), dm[1] = dmin * (float)(two.y >> 8);
    }
};

// Planes: quants (128), d, dmin and scales (16).
struct Q4_K : TwoRuns {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 16 : p == 2 ? 0 : 0; }
    struct Raw {
        uint4 q, h;
        uint32_t c;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        return {m.template u128_at<0>(u * 16), m.template u128_at<1>(u / 8 * 16), (uint32_t)(u % 8 / 2)};
    }
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { nibbles(r.q, q); }
    static __device__ __forceinline__ void factors(const Raw &r, int *s, int *m) {
        const uint2 two = six_bits(r.h, r.c);
        s[0] = two.x & 0xffu, s[1] = two.x >> 8, m[0] = two.y & 0xffu, m[1] = two.y >> 8;
    }
    static __device__ __forceinline__ float2 whole(const Raw &r) { return make_float2(half_bits(r.h.x & 0xffffu), half_bits(r.h.x >> 16)); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const SixBits s(r.h, r.c);
        const uint32_t q[4] = {r.q.x, r.q.y, r.q.z, r.q.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            bytes_to_floats(q[k] & 0x0f0f0f0fu, 0.0f, w + 4 * k);
            bytes_to_floats(q[k] >> 4 & 0x0f0f0f0fu, 0.0f, w + 16 + 4 * k);
        }
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] = fmaf(w[i], s.ds[i / 16], -s.dm[i / 16]);
    }
};

// Planes: quants (128), fifth bits (32), d, dmin and scales (16).
struct Q5_K : TwoRuns {
    static constexpr int PLANES = 3;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 32 : p == 2 ? 16 : 0; }
    struct Raw {
        uint4 q, f, h;
        uint32_t c;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        return {m.template u128_at<0>(u * 16), m.template u128_at<1>(u / 8 * 32 + u % 2 * 16), m.template u128_at<2>(u / 8 * 16), (uint32_t)(u % 8 / 2)};
    }
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) {
        const uint32_t f[4] = {r.f.x, r.f.y, r.f.z, r.f.w};
        nibbles(r.q, q);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            q[k] |= (f[k] >> (2 * r.c) & 0x01010101u) << 4;
            q[4 + k] |= (f[k] >> (2 * r.c + 1) & 0x01010101u) << 4;
        }
    }
    static __device__ __forceinline__ void factors(const Raw &r, int *s, int *m) {
        const uint2 two = six_bits(r.h, r.c);
        s[0] = two.x & 0xffu, s[1] = two.x >> 8, m[0] = two.y & 0xffu, m[1] = two.y >> 8;
    }
    static __device__ __forceinline__ float2 whole(const Raw &r) { return make_float2(half_bits(r.h.x & 0xffffu), half_bits(r.h.x >> 16)); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const SixBits s(r.h, r.c);
        const uint32_t q[4] = {r.q.x, r.q.y, r.q.z, r.q.w}, f[4] = {r.f.x, r.f.y, r.f.z, r.f.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t fifth = f[k] >> (2 * r.c);
            bytes_to_floats((q[k] & 0x0f0f0f0fu) | (fifth & 0x01010101u) << 4, 0.0f, w + 4 * k);
            bytes_to_floats((q[k] >> 4 & 0x0f0f0f0fu) | (fifth >> 1 & 0x01010101u) << 4, 0.0f, w + 16 + 4 * k);
        }
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] = fmaf(w[i], s.ds[i / 16], -s.dm[i / 16]);
    }
};

// Planes: quants (256), d (4). The file's sums of quants follow from them and are not kept.
struct Q8_K : Blocks32 {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 256 : p == 1 ? 4 : p == 2 ? 0 : 0; }
    struct Raw {
        uint4 a, b;
        uint32_t d;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        return {m.template u128_at<0>(u * 32), m.template u128_at<0>(u * 32 + 16), m.template u32_at<1>(u / 8 * 4)};
    }
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) {
        q[0] = r.a.x, q[1] = r.a.y, q[2] = r.a.z, q[3] = r.a.w, q[4] = r.b.x, q[5] = r.b.y, q[6] = r.b.z, q[7] = r.b.w;
    }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *) { d[0] = __uint_as_float(r.d); }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const uint32_t q[8] = {r.a.x, r.a.y, r.a.z, r.a.w, r.b.x, r.b.y, r.b.z, r.b.w};
        const float d = __uint_as_float(r.d);
#pragma unroll
        for (int k = 0; k < 8; k++) bytes_to_floats(q[k] ^ 0x80808080u, 128.0f, w + 4 * k);
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] *= d;
    }
};

// Planes: quants (128), d, high and low bits of the scales (8).
struct IQ4_XS : Blocks32 {
    static constexpr int PLANES = 2;
    static constexpr __host__ __device__ int octet(int p) { return p == 0 ? 128 : p == 1 ? 8 : p == 2 ? 0 : 0; }
    struct Raw {
        uint4 q;
        uint2 h;
        uint32_t g;
    };
    template <class R>
    static __device__ __forceinline__ Raw load(const R &m, uint32_t u) {
        return {m.template u128_at<0>(u * 16), m.template u64_at<1>(u / 8 * 8), (uint32_t)(u % 8)};
    }
    static __device__ __forceinline__ void ints(const Raw &r, uint32_t *q) { looked_up_ints(iq4_table(), r.q, q); }
    static __device__ __forceinline__ void scales(const Raw &r, float *d, float *) {
        const uint32_t low = r.h.y >> (4 * r.g) & 15u, high = r.h.x >> 16 >> (2 * r.g) & 3u;
        d[0] = half_bits(r.h.x & 0xffffu) * ((float)(low | high << 4) - 32.0f);
    }
    static __device__ __forceinline__ void decode(const Raw &r, float *w) {
        const uint32_t low = r.h.y >> (4 * r.g) & 15u, high = r.h.x >> 16 >> (2 * r.g) & 3u;
        const float d = half_bits(r.h.x & 0xffffu) * ((float)(low | high << 4) - 32.0f);
        looked_up(iq4_table(), r.q, w);
#pragma unroll
        for (int i = 0; i < 32; i++) w[i] *= d;
    }
};

// Where a column of activations lies in shared memory.
template <class F>
__device__ __forceinline__ int padded(int column) {
    return column + (column >> F::PAD << 2);
}

// Every tensor type, for instantiations; the names are those of `TensorType` in src/quant.
#define FOR_EACH_FLOAT(X) X(F32) X(F16) X(BF16)
#define FOR_EACH_BLOCK(X) \
    X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(Q8_K) X(IQ4_NL) X(IQ4_XS) X(MXFP4)
#define FOR_EACH_TYPE(X) FOR_EACH_FLOAT(X) FOR_EACH_BLOCK(X)
