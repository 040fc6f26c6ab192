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

// activation(gate, up) of common.cuh, where it is gate * sigmoid(z) * up: all but GELU by erf, which the host does apart.
__device__ __forceinline__ float gated_fast(const Matmul &a, float gate, float up) {
    float z = gate;
    if (a.activation == SWIGLU_CLAMPED) {
        gate = fminf(gate, a.limit), up = fminf(fmaxf(up, -a.limit), a.limit) + 1.0f;
        z = a.alpha * gate;
    } else if (a.activation == GELU_TANH) {
        z = 1.5957691216057308f * fmaf(0.044715f * gate * gate, gate, gate);
    }
    return __fdividef(gate, 1.0f + __expf(-z)) * up;
}

// Sum i of 8 tokens: row lane / 4 + 8 (i / 2), token 2 (lane % 4) + i % 2. Eight lanes store 32 bytes in a row. Sums are added by the memory:
// each value once a launch, so that there is one order.
template <int N, uint32_t EPILOGUE>
__device__ __forceinline__ void store_sums(const Matmul &a, const Tile &t, const float (&sums)[N / 2]) {
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    constexpr bool pairs = EPILOGUE == GATED;
    const Segment &s = a.segments[t.segment];
    const uint32_t row = t.row0 + (pairs ? 8 : 16) * warp + lane / 4;
    const bool there[2] = {row < s.rows, row + 8 < s.rows};
    const float first = there[0] ? bias_of(s, t.expert, row) : 0.0f;
    const float second = pairs ? there[0] ? bias_of(a.segments[1], t.expert, row) : 0.0f : there[1] ? bias_of(s, t.expert, row + 8) : 0.0f;
    float *out = s.out + row;
    const uint32_t stride = s.out_stride;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t token = 8 * n + 2 * (lane % 4) + e;
            if (token >= t.count) continue;
            const float scale = __ldg(a.scales + t.first + token);
            float *to = out + (size_t)(a.order ? __ldg(a.order + t.first + token) : t.first + token) * stride;
            const float y0 = sums[4 * n + e] * scale + first, y1 = sums[4 * n + 2 + e] * scale + second;
            if (pairs) {
                if (there[0]) *to = gated_fast(a, y0, y1) * a.scale;
            } else if (EPILOGUE == ADD) {
                if (there[0]) asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to), "f"(y0 * a.scale));
                if (there[1]) asm volatile("red.global.add.f32 [%0], %1;" ::"l"(to + 8), "f"(y1 * a.scale));
            } else {
                if (there[0]) to[0] = y0 * a.scale;
                if (there[1]) to[8] = y1 * a.scale;
            }
        }
}

template <int N>
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
        if (a.epilogue == GATED) {
            store_sums<N, GATED>(a, t, sums);
        } else if (a.epilogue == ADD) {
            store_sums<N, ADD>(a, t, sums);
        } else {
            store_sums<N, SET>(a, t, sums);
        }
    }
}
