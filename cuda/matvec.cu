// Matrix times one to eight vectors: what decoding a token, or checking a few drafts, is made of.
//
//   y[t][r] = epilogue( sum_c w[r][c] * norm(x[t])[c] + bias[r] )
//
// Shapes: w (rows, cols) in planes; x (n_tokens, width) f32, width <= cols, zeros beyond; y (n_tokens, rows) f32.
// Bytes moved: the matrix once, whatever the number of tokens; x once a block, from the second-level cache.
// A warp computes a row at a time, or a row of each of two matrices that are joined; a lane multiplies units lane, lane + 32, ... in that
// order, then the lanes are added as a butterfly. Block formats are integers: x is brought to 16 bits under a scale for each 32 columns, the
// products of integers are exact, and each group's is scaled and added in f32. Floats are multiplied as floats. So the bits of y[t][r] depend
// on x[t] and row r alone: not on T, not on the grid.
// The first weights are asked for before x is normalised; each unit's successor before it is used.
#include "quant.cuh"

struct Matvec {
    Segment segments[3];
    uint32_t n_segments;
    uint32_t cols;   // padded
    uint32_t width;  // of x
    uint32_t x_stride;
    const float *x;
    const float *norm_weight;  // (width)
    const float *norm_bias;    // (width), or null
    uint32_t norm;
    float eps;
    uint32_t epilogue;
    uint32_t activation;
    float alpha, limit;
    float scale;    // y is multiplied by it, before it is set or added
    float softcap;  // 0 for none: y = softcap * tanh(y / softcap)
    uint32_t n_tokens;
    const uint32_t *experts;  // null, or (n_slots): which expert each slot goes to; then slot = blockIdx.y
    uint32_t slots_a_token;   // x of slot s is x[s / slots_a_token]
};

// Thirty-two activations as integers of 16 bits, scale * (256 hi + lo), each half a signed byte, and the sums of the sixteens. 80 bytes a
// block: neighbouring lanes, which read neighbouring blocks, meet no bank conflict.
struct __align__(16) XBlock {
    uint4 hi[2], lo[2];
    float scale;
    int sum[2];
    int unused;
};

struct Moments {
    float mean, factor;
};

// Four neighbours. Rows whose width is no multiple of four begin anywhere.
template <bool ALIGNED>
__device__ __forceinline__ float4 load4(const float *row, uint32_t c, uint32_t width) {
    if (ALIGNED) return c < width ? *(const float4 *)(row + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return make_float4(c < width ? row[c] : 0.0f, c + 1 < width ? row[c + 1] : 0.0f, c + 2 < width ? row[c + 2] : 0.0f, c + 3 < width ? row[c + 3] : 0.0f);
}

// Vectors that a thread asks for at once, for a norm's sums and for the values.
#define AHEAD 4
#define STAGED 2

template <bool ALIGNED>
__device__ __forceinline__ Moments moments(const Matvec &a, const float *row, float *room) {
    Moments m = {0.0f, 1.0f};
    const uint32_t step = 4 * blockDim.x;
    if (a.norm == NORM_LAYER) {
        float sum = 0.0f;
        for (uint32_t c0 = 4 * threadIdx.x; c0 < a.width; c0 += AHEAD * step) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) v[k] = load4<ALIGNED>(row, c0 + k * step, a.width);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) sum += (v[k].x + v[k].y) + (v[k].z + v[k].w);
        }
        m.mean = block_sum(sum, room) / (float)a.width;
    }
    if (a.norm != NORM_NONE) {
        float squares = 0.0f;
        for (uint32_t c0 = 4 * threadIdx.x; c0 < a.width; c0 += AHEAD * step) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) v[k] = load4<ALIGNED>(row, c0 + k * step, a.width);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                const float d[4] = {v[k].x - m.mean, v[k].y - m.mean, v[k].z - m.mean, v[k].w - m.mean};
#pragma unroll
                for (int i = 0; i < 4; i++) squares = c0 + k * step + i < a.width ? fmaf(d[i], d[i], squares) : squares;
            }
        }
        m.factor = 1.0f / sqrtf(block_sum(squares, room) / (float)a.width + a.eps);
    }
    return m;
}

__device__ __forceinline__ float4 normed(const Matvec &a, const Moments &m, float4 v, float4 w, float4 b) {
    if (a.norm != NORM_NONE) {
        v.x = (v.x - m.mean) * m.factor * w.x, v.y = (v.y - m.mean) * m.factor * w.y;
        v.z = (v.z - m.mean) * m.factor * w.z, v.w = (v.w - m.mean) * m.factor * w.w;
    }
    v.x += b.x, v.y += b.y, v.z += b.z, v.w += b.w;
    return v;
}

// Four neighbours of a block of 32, which eight lanes hold together.
__device__ __forceinline__ void store_ints(XBlock *blocks, uint32_t c, float4 v) {
    float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
    for (int d = 1; d < 8; d *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
    const float inverse = most > 0.0f ? 32512.0f / most : 0.0f;
    const int x[4] = {__float2int_rn(v.x * inverse), __float2int_rn(v.y * inverse), __float2int_rn(v.z * inverse), __float2int_rn(v.w * inverse)};
    uint32_t hi = 0, lo = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int h = (x[i] + 128) >> 8;
        hi |= (uint32_t)(h & 255) << (8 * i), lo |= (uint32_t)((x[i] - 256 * h) & 255) << (8 * i);
    }
    int sum = (x[0] + x[1]) + (x[2] + x[3]);
    sum += __shfl_xor_sync(ALL, sum, 1);
    sum += __shfl_xor_sync(ALL, sum, 2);
    XBlock &to = blocks[c / 32];
    const uint32_t k = c % 32 / 4;
    ((uint32_t *)to.hi)[k] = hi, ((uint32_t *)to.lo)[k] = lo;
    if (k % 4 == 0) to.sum[k / 4] = sum;
    if (k == 0) to.scale = most / 32512.0f;
}

// Brings x, normalised, to shared memory: as integers for block formats; as floats, columns at padded<F>(), for the others.
template <class F, bool ALIGNED>
__device__ __forceinline__ void stage_row(const Matvec &a, const float *row, float *to, float *room) {
    // whole warps stay together, since they exchange their largest values: 128 columns a warp
    const uint32_t end = (a.cols + 127) / 128 * 128, step = 4 * blockDim.x;
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
            v[k] = normed(a, m, v[k], w[k], b);
            if constexpr (F::GROUPS > 0) {
                store_ints((XBlock *)to, c, v[k]);
            } else if (c < a.cols) {
                *(float4 *)(to + padded<F>(c)) = v[k];
            }
        }
    }
}

template <class F>
__device__ void stage_x(const Matvec &a, const float *x, uint32_t n_tokens, int stride, float *xs, float *room) {
    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *row = x + (size_t)t * a.x_stride;
        if (a.width % 4 == 0) {
            stage_row<F, true>(a, row, xs + t * stride, room);
        } else {
            stage_row<F, false>(a, row, xs + t * stride, room);
        }
    }
    __syncthreads();
}

// One unit times T tokens.
template <class F, int T>
__device__ __forceinline__ void multiply_floats(uint32_t n_tokens, const typename F::Raw &raw, int u, const float *xs, int stride, float (&acc)[T]) {
    const float *x = xs + padded<F>(F::column(u));
    float w[F::UNIT];
    F::decode(raw, w);
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (T > 1 && t >= n_tokens) break;
#pragma unroll
        for (int i = 0; i < F::UNIT; i += 4) {
            const float4 v = *(const float4 *)(x + t * stride + F::offset(i));
            acc[t] = fmaf(w[i], v.x, acc[t]);
            acc[t] = fmaf(w[i + 1], v.y, acc[t]);
            acc[t] = fmaf(w[i + 2], v.z, acc[t]);
            acc[t] = fmaf(w[i + 3], v.w, acc[t]);
        }
    }
}

// The integers of a unit's columns: eight words of each half, a scale for each group, and their sums.
template <class F>
struct XUnit {
    uint32_t hi[8], lo[8];
    float scale[F::GROUPS];
    int sum[F::GROUPS];

    __device__ __forceinline__ void whole(int at, const uint4 &h, const uint4 &l) {
        hi[at] = h.x, hi[at + 1] = h.y, hi[at + 2] = h.z, hi[at + 3] = h.w;
        lo[at] = l.x, lo[at + 1] = l.y, lo[at + 2] = l.z, lo[at + 3] = l.w;
    }

    __device__ __forceinline__ XUnit(const XBlock *blocks, int u) {
        if constexpr (F::GROUPS == 1) {
            const XBlock &b = blocks[u];
            whole(0, b.hi[0], b.lo[0]), whole(4, b.hi[1], b.lo[1]);
            scale[0] = b.scale;
            if constexpr (F::MINS) sum[0] = b.sum[0] + b.sum[1];
        } else if constexpr (F::GROUPS == 2) {
#pragma unroll
            for (int g = 0; g < 2; g++) {
                const XBlock &b = blocks[u / 2 * 2 + g];
                whole(4 * g, b.hi[u % 2], b.lo[u % 2]);
                scale[g] = b.scale, sum[g] = b.sum[u % 2];
            }
        } else {
#pragma unroll
            for (int g = 0; g < 4; g++) {
                const XBlock &b = blocks[u / 4 * 4 + g];
                const uint2 h = ((const uint2 *)b.hi)[u % 4], l = ((const uint2 *)b.lo)[u % 4];
                hi[2 * g] = h.x, hi[2 * g + 1] = h.y, lo[2 * g] = l.x, lo[2 * g + 1] = l.y;
                scale[g] = b.scale;
                if constexpr (F::MINS) {
                    const int ones = 0x01010101, high = __dp4a((int)h.x, ones, __dp4a((int)h.y, ones, 0));
                    sum[g] = 256 * high + __dp4a((int)l.x, ones, __dp4a((int)l.y, ones, 0));
                }
            }
        }
    }
};

template <class F, int T>
__device__ __forceinline__ void multiply_ints(uint32_t n_tokens, const typename F::Raw &raw, int u, const float *xs, int stride, float (&acc)[T]) {
    constexpr int WORDS = 8 / F::GROUPS;
    uint32_t q[8];
    float d[F::GROUPS], m[F::GROUPS];
    F::ints(raw, q);
    F::scales(raw, d, m);
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (T > 1 && t >= n_tokens) break;
        const XUnit<F> x((const XBlock *)(xs + t * stride), u);
#pragma unroll
        for (int g = 0; g < F::GROUPS; g++) {
            int hi = 0, lo = 0;
#pragma unroll
            for (int k = g * WORDS; k < (g + 1) * WORDS; k++) {
                hi = __dp4a((int)q[k], (int)x.hi[k], hi);
                lo = __dp4a((int)q[k], (int)x.lo[k], lo);
            }
            acc[t] = fmaf(d[g] * x.scale[g], (float)(256 * hi + lo), acc[t]);
            if constexpr (F::MINS) acc[t] = fmaf(-m[g] * x.scale[g], (float)x.sum[g], acc[t]);
        }
    }
}

// Floats that a token's x takes in shared memory.
template <class F>
__device__ __forceinline__ int shared_stride(uint32_t cols) {
    return F::GROUPS > 0 ? (int)((cols + 127) / 128 * 4 * (sizeof(XBlock) / 4)) : padded<F>((int)cols) + 4;
}

__device__ __forceinline__ float finish(const Matvec &a, float y) {
    y *= a.scale;
    return a.softcap > 0.0f ? a.softcap * tanhf(y / a.softcap) : y;
}

// What becomes of the sums of one row, or of a row of each matrix of a pair.
template <int T>
__device__ __forceinline__ void store_row(const Matvec &a, const Segment &s, uint32_t row, uint32_t slot, const float (&first)[T], const float (&second)[T]) {
    const uint32_t expert = a.experts ? a.experts[slot] : 0, lane = threadIdx.x % WARP;
#pragma unroll
    for (int t = 0; t < T; t++) {
        if (lane != t || t >= a.n_tokens) continue;
        float y = first[t] + (s.bias ? s.bias[(size_t)expert * s.rows + row] : 0.0f);
        if (a.epilogue == GATED) {
            const Segment &up = a.segments[1];
            y = gated(a.activation, y, second[t] + (up.bias ? up.bias[(size_t)expert * up.rows + row] : 0.0f), a.alpha, a.limit);
        } else if (a.epilogue == PLAIN) {
            y = activate(a.activation, y);
        }
        float *to = s.out + (size_t)(a.experts ? slot : t) * s.out_stride + row;
        y = finish(a, y);
        *to = a.epilogue == ADD ? *to + y : y;
    }
}

template <class F, int T>
__device__ __forceinline__ void matvec(const Matvec &a) {
    extern __shared__ __align__(16) float xs[];
    __shared__ float room[32];
    const uint32_t lane = threadIdx.x % WARP, units = a.cols / F::UNIT, passes = (units + WARP - 1) / WARP;
    const int stride = shared_stride<F>(a.cols);
    const bool pairs = a.epilogue == GATED;
    let_next_start();
    if (a.experts) wait_for_inputs();  // which weights are read is an input too
    const uint32_t slot = blockIdx.y, expert = a.experts ? a.experts[slot] : 0;
    const uint32_t rows0 = a.segments[0].rows, rows1 = rows0 + (a.n_segments > 1 ? a.segments[1].rows : 0);
    const uint32_t items = pairs ? rows0 : rows1 + (a.n_segments > 2 ? a.segments[2].rows : 0);

    // an item is a row, or in pairs a row of each matrix, one after the other; neighbouring items go to different multiprocessors
    typename F::Raw raw;
    Planes at;
    auto locate = [&](uint32_t item, uint32_t &segment) {
        segment = pairs || item < rows0 ? 0 : item < rows1 ? 1 : 2;
        return segment == 0 ? item : item - (segment == 1 ? rows0 : rows1);
    };
    auto open = [&](uint32_t item, uint32_t half) {
        uint32_t segment;
        const uint32_t row = locate(item, segment);
        const Segment &s = a.segments[segment + half];
        at = row_of<F>(s.weights, (size_t)expert * s.rows + row);
    };

    const uint32_t step = gridDim.x * (blockDim.x / WARP);
    uint32_t item = (threadIdx.x / WARP) * gridDim.x + blockIdx.x, half = 0, pass = 0;
    if (item < items) {
        open(item, 0);
        if (lane < units) raw = F::load(at, lane);
    }
    wait_for_inputs();
    const uint32_t first_token = a.experts ? slot / a.slots_a_token : 0;
    stage_x<F>(a, a.x + (size_t)first_token * a.x_stride, a.n_tokens, stride, xs, room);

    float acc[T], first[T];
#pragma unroll
    for (int t = 0; t < T; t++) acc[t] = 0.0f;
    while (item < items) {
        const typename F::Raw now = raw;
        const uint32_t u = pass * WARP + lane, of = item, of_half = half;
        const bool ends = ++pass == passes;
        if (ends) {
            pass = 0, half ^= pairs ? 1 : 0;
            if (half == 0) item += step;
            if (item < items) open(item, half);
        }
        const uint32_t next = pass * WARP + lane;
        if (item < items && next < units) raw = F::load(at, next);
        if (u < units) {
            if constexpr (F::GROUPS > 0) {
                multiply_ints<F, T>(a.n_tokens, now, u, xs, stride, acc);
            } else {
                multiply_floats<F, T>(a.n_tokens, now, u, xs, stride, acc);
            }
        }
        if (!ends) continue;
#pragma unroll
        for (int t = 0; t < T; t++) acc[t] = warp_sum(acc[t]);
        if (pairs && of_half == 0) {
#pragma unroll
            for (int t = 0; t < T; t++) first[t] = acc[t];
        } else {
            uint32_t segment;
            const uint32_t row = locate(of, segment);
            if (pairs) {
                store_row<T>(a, a.segments[0], row, slot, first, acc);
            } else {
                store_row<T>(a, a.segments[segment], row, slot, acc, acc);
            }
        }
#pragma unroll
        for (int t = 0; t < T; t++) acc[t] = 0.0f;
    }
}

// Names for the host: matvec_Q4_K_1 is for one token. Sixteen warps a block, always: the order of a norm's sum depends on it.
#define INSTANCE(F, T, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(512, BLOCKS) matvec_##F##_##T(const __grid_constant__ Matvec a) { matvec<F, T>(a); }
#define INSTANCES(F) INSTANCE(F, 1, 2) INSTANCE(F, 2, 1) INSTANCE(F, 8, 1)
FOR_EACH_TYPE(INSTANCES)
