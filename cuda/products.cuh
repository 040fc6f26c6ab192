// The half of a Hopper product that multiplies: two warpgroups that take stages of weights and of x from shared memory, and what becomes of
// the sums. Another half of the block fills the stages: matmul_hopper.cu decodes weights, matmul_half.cu has decoded ones brought.
#pragma once
#include "hopper.cuh"
#include "matmul.cuh"

#define WORKERS 256

template <int N>
struct Shape {
    static constexpr int STAGES = N == 256 ? 4 : 6;
    static constexpr int W_BYTES = TILE_M * PANEL * 2, X_BYTES = N * PANEL * 2;
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
    uint64_t *full, *empty;
};

// The stages begin at a multiple of 1024 bytes. `arrivals`: of those that fill a stage. Every lane of the block calls it.
template <int N>
__device__ __forceinline__ Shared open_stages(u8 *room, uint64_t *barriers, uint32_t arrivals) {
    typedef Shape<N> S;
    u8 *base = room + (1024 - shared_address(room) % 1024) % 1024;
    const Shared at = {base, base + S::STAGES * S::W_BYTES, barriers, barriers + S::STAGES};
    if (threadIdx.x == 0) {
        for (int s = 0; s < S::STAGES; s++) {
            barrier_init(at.full + s, arrivals);
            barrier_init(at.empty + s, WORKERS / WARP);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        show_to_tensor_cores();
    }
    __syncthreads();
    return at;
}

// activation(gate, up) of common.cuh as gate * sigmoid(gate * (a + b * gate^2)) * (up + more), gate and up within a limit, so that no sum waits
// for a branch: all but GELU by erf, which the host has done apart.
struct Gate {
    float a, b, limit, more;
    __device__ __forceinline__ Gate(const Matmul &m) {
        const bool clamped = m.activation == SWIGLU_CLAMPED, gelu = m.activation == GELU_TANH;
        a = gelu ? 1.5957691216057308f : clamped ? m.alpha : 1.0f;  // 2 sqrt(2 / pi): 1 + tanh(x) is 2 sigmoid(2 x)
        b = gelu ? 0.0713548162726009f : 0.0f;
        limit = clamped ? m.limit : INFINITY;
        more = clamped ? 1.0f : 0.0f;
    }
    __device__ __forceinline__ float operator()(float gate, float up) const {
        gate = fminf(gate, limit), up = fminf(fmaxf(up, -limit), limit);
        return __fdividef(gate, 1.0f + __expf(-gate * fmaf(b * gate, gate, a))) * (up + more);
    }
};

// Without branches, as the stores of a tile are many.
__device__ __forceinline__ void store_to(float *to, float y, bool really) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p st.global.f32 [%0], %1;\n}" ::"l"(to), "f"(y), "r"((uint32_t)really));
}

__device__ __forceinline__ void store_to(uint32_t *to, uint32_t y, bool really) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p st.global.b32 [%0], %1;\n}" ::"l"(to), "r"(y), "r"((uint32_t)really));
}

__device__ __forceinline__ void add_to(float *to, float y, bool really) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p red.global.add.f32 [%0], %1;\n}" ::"l"(to), "f"(y), "r"((uint32_t)really));
}

// Sum i of 8 tokens: row lane / 4 + 8 (i / 2), token 2 (lane % 4) + i % 2. Eight lanes store 32 bytes in a row. Sums are added by the memory:
// each value once a launch, so that there is one order. Nothing but the stores depends on what is there, so that all loads go out together:
// scales and order may be read 256 rows beyond the last.
template <int N, bool ORDERED, uint32_t EPILOGUE>
__device__ __forceinline__ void store_sums(const Matmul &a, const Tile &t, const float (&sums)[N / 2]) {
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    constexpr bool pairs = EPILOGUE == GATED;
    const Segment &s = a.segments[t.segment];
    const uint32_t row = t.row0 + (pairs ? 8 : 16) * warp + lane / 4;
    const bool there[2] = {row < s.rows, row + 8 < s.rows};
    const float first = there[0] ? bias_of(s, t.expert, row) : 0.0f;
    const float second = pairs ? there[0] ? bias_of(a.segments[1], t.expert, row) : 0.0f : there[1] ? bias_of(s, t.expert, row + 8) : 0.0f;
    float *out = s.out + row;
    const uint32_t stride = s.out_stride, mine = t.first + 2 * (lane % 4);
    const uint32_t left = t.count - min(t.count, 2 * (lane % 4));  // tokens from this lane's first on
    const Gate gate(a);
    constexpr int BATCH = 4;  // tokens' pairs whose scales are loaded together
#pragma unroll
    for (int n0 = 0; n0 < N / 8; n0 += BATCH) {
        float2 scales[BATCH];
        uint2 orders[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const uint32_t token = mine + 8 * (n0 + b);
            scales[b] = a.scales ? __ldg((const float2 *)(a.scales + token)) : make_float2(a.x_scale, a.x_scale);
            orders[b] = ORDERED && a.order ? __ldg((const uint2 *)(a.order + token)) : make_uint2(token, token + 1);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int n = n0 + b;
                const float scale = e ? scales[b].y : scales[b].x;
                float *to = out + (size_t)(e ? orders[b].y : orders[b].x) * stride;
                const float y0 = sums[4 * n + e] * scale + first, y1 = sums[4 * n + 2 + e] * scale + second;
                const bool here = 8 * n + e < left;
                if (pairs) {
                    store_to(to, gate(y0, y1) * a.scale, here && there[0]);
                } else if (EPILOGUE == ADD) {
                    add_to(to, y0 * a.scale, here && there[0]);
                    add_to(to + 8, y1 * a.scale, here && there[1]);
                } else {
                    store_to(to, y0 * a.scale, here && there[0]);
                    store_to(to + 8, y1 * a.scale, here && there[1]);
                }
            }
    }
}

// Pairs as halves in panels: eight rows of eight tokens are transposed within the warp, so that four lanes store a piece of 16 bytes. What is
// more than halves hold becomes the most that they do. Of whole tiles alone: there are multiples of 64 rows.
template <int N>
__device__ __forceinline__ void store_halves(const Matmul &a, const Tile &t, const float (&sums)[N / 2]) {
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t row = t.row0 + 8 * warp, column = row + 2 * (lane % 4);
    const float first = bias_of(a.segments[0], 0, row + lane / 4), second = bias_of(a.segments[1], 0, row + lane / 4), most = 65504.0f;
    const Gate gate(a);
    const float share = a.scale / a.half_scale;
    const float *scales = a.scales + t.first + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        const float2 scale = __ldg((const float2 *)(scales + 8 * n));
        float y[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float of = e ? scale.y : scale.x;
            y[e] = fminf(fmaxf(gate(sums[4 * n + e] * of + first, sums[4 * n + 2 + e] * of + second) * share, -most), most);
        }
        const __half2 pair = __floats2half2_rn(y[0], y[1]);
        const uint32_t token = 8 * n + lane / 4, two = transposed(*(const uint32_t *)&pair);
        store_to((uint32_t *)(a.half_out + in_panels(a.half_rows, t.first + token, column)), two, token < t.count);
    }
}

// ORDERED: rows of x may be those of experts.
template <int N, bool ORDERED>
__device__ __forceinline__ void multiply_tiles(const Matmul &a, const Shared &at) {
    typedef Shape<N> S;
    const uint32_t lane = threadIdx.x % WARP, panels = (a.cols + PANEL - 1) / PANEL;
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
        const Tile t = tile_at(a, tile, N);
        if (a.half_out) {
            store_halves<N>(a, t, sums);
        } else if (a.epilogue == GATED) {
            store_sums<N, ORDERED, GATED>(a, t, sums);
        } else if (a.epilogue == ADD) {
            store_sums<N, ORDERED, ADD>(a, t, sums);
        } else {
            store_sums<N, ORDERED, SET>(a, t, sums);
        }
    }
}
