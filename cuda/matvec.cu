// Matrix times one to eight vectors: what decoding a token, or checking a few drafts, is made of.
//
//   y[t][r] = epilogue( sum_c w[r][c] * norm(x[t])[c] + bias[r] )
//
// Shapes: w (rows, cols) in planes; x (n_tokens, width) f32, width <= cols, zeros beyond; y (n_tokens, rows) f32.
// Bytes moved: the matrix once, whatever the number of tokens; x once a block, from the second-level cache.
// One warp computes R rows at a time; a lane decodes units lane, lane + 32, ... of each and multiplies them in that order, then the lanes
// are added as a butterfly. So the bits of y[t][r] depend on x[t] and row r alone: not on T, not on R, not on the grid.
// The first weights are asked for before x is normalised; each unit's successor before it is used.
#include "quant.cuh"

// `Segment` of src/device/cuda/launch.rs: one matrix, or some of its rows.
struct Segment {
    Planes planes;
    uint64_t expert_bytes[MAX_PLANES];  // from one expert's plane to the next one's
    float *out;                         // (n_tokens, out_stride)
    const float *bias;                  // (rows), or null; (n_experts, rows) for experts
    uint32_t rows;
    uint32_t out_stride;
};

enum NormKind : uint32_t { NORM_NONE = 0, NORM_RMS = 1, NORM_LAYER = 2 };
enum Epilogue : uint32_t { SET = 0, ADD = 1, GATED = 2, PLAIN = 3 };

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

// Copies x, normalised, to shared memory: (n_tokens, stride), columns at padded<F>().
template <class F>
__device__ void stage_x(const Matvec &a, const float *x, uint32_t n_tokens, int stride, float *xs, float *room) {
    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *row = x + (size_t)t * a.x_stride;
        float *to = xs + t * stride;
        float mean = 0.0f, factor = 1.0f;
        if (a.norm == NORM_LAYER) {
            float sum = 0.0f;
            for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) sum += row[c];
            mean = block_sum(sum, room) / (float)a.width;
        }
        if (a.norm != NORM_NONE) {
            float squares = 0.0f;
            for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) {
                const float v = row[c] - mean;
                squares = fmaf(v, v, squares);
            }
            factor = 1.0f / sqrtf(block_sum(squares, room) / (float)a.width + a.eps);
        }
        for (uint32_t c = threadIdx.x; c < a.cols; c += blockDim.x) {
            float v = 0.0f;
            if (c < a.width) {
                v = row[c];
                if (a.norm != NORM_NONE) v = (v - mean) * factor * a.norm_weight[c];
                if (a.norm_bias) v += a.norm_bias[c];
            }
            to[padded<F>(c)] = v;
        }
    }
    __syncthreads();
}

__device__ __forceinline__ float finish(const Matvec &a, float y) {
    y *= a.scale;
    return a.softcap > 0.0f ? a.softcap * tanhf(y / a.softcap) : y;
}

template <class F, int T, int R>
__device__ __forceinline__ void matvec(const Matvec &a) {
    extern __shared__ float xs[];
    __shared__ float room[32];
    const uint32_t lane = threadIdx.x % WARP, warps = gridDim.x * (blockDim.x / WARP);
    const uint32_t units = a.cols / F::UNIT, passes = (units + WARP - 1) / WARP;
    const int stride = padded<F>((int)a.cols) + 4;
    const bool pairs = a.epilogue == GATED;
    const uint32_t slot = blockIdx.y, expert = a.experts ? a.experts[slot] : 0;

    // groups of R rows of one segment; in pairs: R / 2 of the first segment and the same of the second
    const uint32_t step = pairs ? R / 2 : R;
    const uint32_t n_segments = pairs ? 1 : a.n_segments;
    uint32_t first_group[4] = {0, 0, 0, 0}, groups = 0;
#pragma unroll
    for (int s = 0; s < 3; s++) {
        if (s < n_segments) groups += (a.segments[s].rows + step - 1) / step;
        first_group[s + 1] = groups;
    }

    typename F::Raw raw[R];
    auto which = [&](uint32_t group, uint32_t &segment) {
        segment = group >= first_group[1] ? (group >= first_group[2] ? 2 : 1) : 0;
        return (group - first_group[segment]) * step;
    };
    auto load = [&](uint32_t group, uint32_t pass) {
        const uint32_t u = pass * WARP + lane;
        if (u >= units) return;
        uint32_t segment;
        const uint32_t row = which(group, segment);
#pragma unroll
        for (int r = 0; r < R; r++) {
            const Segment &s = a.segments[pairs ? r / (R > 1 ? R / 2 : 1) : segment];
            const uint32_t mine = min(row + (pairs ? r % (R > 1 ? R / 2 : 1) : r), s.rows - 1);
            Planes planes = s.planes;
            if (a.experts) {
#pragma unroll
                for (int p = 0; p < MAX_PLANES; p++) planes.p[p] += expert * s.expert_bytes[p];
            }
            raw[r] = F::load(planes, (size_t)mine * units + u);
        }
    };

    uint32_t group = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, pass = 0;
    if (group < groups) load(group, 0);
    const uint32_t first = a.experts ? slot / a.slots_a_token : 0;
    stage_x<F>(a, a.x + (size_t)first * a.x_stride, a.n_tokens, stride, xs, room);

    float acc[R][T];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int t = 0; t < T; t++) acc[r][t] = 0.0f;

    while (group < groups) {
        typename F::Raw now[R];
#pragma unroll
        for (int r = 0; r < R; r++) now[r] = raw[r];
        const bool last = pass + 1 == passes;
        const uint32_t next_group = last ? group + warps : group, next_pass = last ? 0 : pass + 1;
        if (next_group < groups) load(next_group, next_pass);

        const uint32_t u = pass * WARP + lane;
        if (u < units) {
            const float *x = xs + padded<F>(F::column(u));
#pragma unroll
            for (int r = 0; r < R; r++) {
                float w[F::UNIT];
                F::decode(now[r], w);
#pragma unroll
                for (int t = 0; t < T; t++) {
                    if (T > 1 && t >= a.n_tokens) break;
#pragma unroll
                    for (int i = 0; i < F::UNIT; i += 4) {
                        const float4 v = *(const float4 *)(x + t * stride + F::offset(i));
                        acc[r][t] = fmaf(w[i], v.x, acc[r][t]);
                        acc[r][t] = fmaf(w[i + 1], v.y, acc[r][t]);
                        acc[r][t] = fmaf(w[i + 2], v.z, acc[r][t]);
                        acc[r][t] = fmaf(w[i + 3], v.w, acc[r][t]);
                    }
                }
            }
        }

        if (last) {
            uint32_t segment;
            const uint32_t row = which(group, segment);
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int t = 0; t < T; t++) acc[r][t] = warp_sum(acc[r][t]);
#pragma unroll
            for (int r = 0; r < (R > 1 ? R : 1); r++) {
#pragma unroll
                for (int t = 0; t < T; t++) {
                    if (lane != (r * T + t) % WARP || t >= a.n_tokens) continue;
                    const Segment &s = a.segments[segment];
                    const uint32_t mine = row + r;
                    if (mine >= s.rows || (pairs && r >= R / 2)) continue;
                    const float *bias = s.bias ? s.bias + (size_t)expert * s.rows : nullptr;
                    float y = acc[r][t] + (bias ? bias[mine] : 0.0f);
                    if (pairs) {
                        const Segment &up = a.segments[1];
                        const float *up_bias = up.bias ? up.bias + (size_t)expert * up.rows : nullptr;
                        const float v = acc[R > 1 ? (r + R / 2) % R : 0][t] + (up_bias ? up_bias[mine] : 0.0f);
                        y = gated(a.activation, y, v, a.alpha, a.limit);
                    } else if (a.epilogue == PLAIN) {
                        y = activate(a.activation, y);
                    }
                    float *to = s.out + (size_t)(a.experts ? slot : t) * s.out_stride + mine;
                    y = finish(a, y);
                    *to = a.epilogue == ADD ? *to + y : y;
                }
            }
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int t = 0; t < T; t++) acc[r][t] = 0.0f;
        }
        group = next_group, pass = next_pass;
    }
}

// Names for the host: matvec_Q4_K_1_4 is for one token, four rows a warp. In pairs R is even.
#define INSTANCE(F, T, R) \
    extern "C" __global__ void __launch_bounds__(256, 2) matvec_##F##_##T##_##R(const __grid_constant__ Matvec a) { matvec<F, T, R>(a); }
#define INSTANCES(F) INSTANCE(F, 1, 1) INSTANCE(F, 1, 2) INSTANCE(F, 1, 4) INSTANCE(F, 2, 2) INSTANCE(F, 8, 2)
FOR_EACH_TYPE(INSTANCES)
