// Matrix times many vectors on the tensor cores: what a prompt is made of; on Hopper matmul_hopper.cu does it.
//
//   y[t][r] = epilogue( scales[t] * sum_c half(w[r][c]) * x[t][c] + bias[r] )
//
// Shapes: w (rows, cols) in planes; x (tokens, cols) f16 in panels (matmul.cuh), padded with zeros to 128 columns; y (n_tokens, rows) f32.
// A block computes TILE_M rows for TILE_N tokens. Weights are decoded to f16 once a block, into shared memory, while the tensor cores work
// on the columns before (m16n8k16, f32 accumulators). In pairs the tile's upper half are rows of the first segment, its lower half the
// same rows of the second, and one warp holds both.
// Bytes moved: the matrix once for every TILE_N tokens, from the second-level cache but for the first time; x once for every TILE_M rows.
// The sum's order depends on the columns alone: a token's bits are the same whatever other tokens are in the step.
#include "matmul.cuh"
#include "tensor_core.cuh"

#define TILE_N 128
#define THREADS 256

// Sixteen bytes from global to shared memory, or zeros.
__device__ __forceinline__ void copy16(__half *to, const __half *from, bool there) {
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes));
}

template <class F>
struct Pass {
    static constexpr int K = F::PAD == 7 ? 128 : 64;            // columns a pass: whole blocks or halves of one
    static constexpr int PITCH = K + 8;                          // of a row in shared memory, in halves: no bank conflicts
    static constexpr int ROW_UNITS = K / F::UNIT;                // units a row and pass
    static constexpr int UNITS = TILE_M * ROW_UNITS / THREADS;   // units a thread
    static constexpr int BYTES = 2 * (TILE_M + TILE_N) * PITCH * 2;
};

template <class F>
__device__ __forceinline__ void matmul(const Matmul &a) {
    typedef Pass<F> S;
    extern __shared__ __align__(16) __half tiles[];
    __half *wt = tiles, *xt = tiles + 2 * TILE_M * S::PITCH;
    const bool pairs = a.epilogue == GATED;
    let_next_start();
    if (a.groups) wait_for_inputs();  // which weights are read is an input too
    if (blockIdx.x >= count_tiles(a, TILE_N)) return;
    const Tile at = tile_at(a, blockIdx.x, TILE_N);
    const uint32_t segment = at.segment, row0 = at.row0;
    const uint32_t units = a.cols / F::UNIT, passes = (a.cols + S::K - 1) / S::K;
    const uint32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;

    typename F::Raw raw[S::UNITS];
    auto place = [&](int i, uint32_t &row, uint32_t &j) {
        const uint32_t k = thread + i * THREADS;
        row = k / S::ROW_UNITS, j = k % S::ROW_UNITS;
    };
    auto load_w = [&](uint32_t pass) {
#pragma unroll
        for (int i = 0; i < S::UNITS; i++) {
            uint32_t row, j;
            place(i, row, j);
            const Segment &s = a.segments[pairs ? row / (TILE_M / 2) : segment];
            const uint32_t mine = min(row0 + (pairs ? row % (TILE_M / 2) : row), s.rows - 1);
            const uint32_t u = min(pass * S::ROW_UNITS + j, units - 1);
            raw[i] = F::load(row_of<F>(s.weights, (size_t)at.expert * s.rows + mine), u);
        }
    };
    auto store_w = [&](uint32_t pass) {
        __half *to = wt + (pass & 1) * TILE_M * S::PITCH;
#pragma unroll
        for (int i = 0; i < S::UNITS; i++) {
            uint32_t row, j;
            place(i, row, j);
            float w[F::UNIT];
            F::decode(raw[i], w);
            const bool there = pass * S::ROW_UNITS + j < units;
#pragma unroll
            for (int k = 0; k < F::UNIT; k += 8) {
                uint4 v;
                __half2 *h = (__half2 *)&v;
#pragma unroll
                for (int n = 0; n < 4; n++) h[n] = there ? __floats2half2_rn(w[k + 2 * n], w[k + 2 * n + 1]) : __half2half2(__half(0.0f));
                *(uint4 *)(to + row * S::PITCH + F::column(j) + F::offset(k)) = v;
            }
        }
    };
    auto copy_x = [&](uint32_t pass) {
        __half *to = xt + (pass & 1) * TILE_N * S::PITCH;
#pragma unroll
        for (int i = 0; i < TILE_N * S::K / 8 / THREADS; i++) {
            const uint32_t k = thread + i * THREADS, row = k / (S::K / 8), c = k % (S::K / 8) * 8;
            const bool there = row < at.count;
            copy16(to + row * S::PITCH + c, a.x + in_panels(a.x_rows, at.first + (there ? row : 0), pass * S::K + c), there);
        }
        asm volatile("cp.async.commit_group;");
    };

    float acc[2][8][4];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;
    const uint32_t wm = warp / 2 * 16, wn = warp % 2 * 64;

    load_w(0);
    wait_for_inputs();
    copy_x(0);
    store_w(0);
    asm volatile("cp.async.wait_all;");
    __syncthreads();
    for (uint32_t pass = 0; pass < passes; pass++) {
        const bool more = pass + 1 < passes;
        if (more) {
            load_w(pass + 1);
            copy_x(pass + 1);
        }
        const __half *w = wt + (pass & 1) * TILE_M * S::PITCH, *x = xt + (pass & 1) * TILE_N * S::PITCH;
#pragma unroll
        for (int k = 0; k < S::K; k += 16) {
            uint32_t wa[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++) ldmatrix4(wa[m], w + (64 * m + wm + lane % 16) * S::PITCH + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                uint32_t xb[4];
                ldmatrix4(xb, x + (wn + 8 * n + lane % 8 + lane / 16 * 8) * S::PITCH + k + lane / 8 % 2 * 8);
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    mma(acc[m][n], wa[m], xb[0], xb[1]);
                    mma(acc[m][n + 1], wa[m], xb[2], xb[3]);
                }
            }
        }
        if (more) store_w(pass + 1);
        asm volatile("cp.async.wait_all;");
        __syncthreads();
    }

    // element i of a fragment: row lane / 4 + 8 (i / 2), token 2 (lane % 4) + i % 2
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t token = wn + 8 * n + 2 * (lane % 4) + i % 2;
            if (token >= at.count) continue;
            const float xs = a.scales[at.first + token];
            const uint32_t t = a.order ? a.order[at.first + token] : at.first + token;
#pragma unroll
            for (int m = 0; m < 2; m++) {
                if (pairs && m) continue;
                const Segment &s = a.segments[segment];
                const uint32_t r = row0 + 64 * m + wm + lane / 4 + 8 * (i / 2);
                if (r >= s.rows) continue;
                const float up = pairs ? acc[1][n][i] * xs + bias_of(a.segments[1], at.expert, r) : 0.0f;
                const float y = finish(a, acc[m][n][i] * xs + bias_of(s, at.expert, r), up);
                float *to = s.out + (size_t)t * s.out_stride + r;
                *to = a.epilogue == ADD ? *to + y : y;
            }
        }
    }
}

#define INSTANCE(F) \
    extern "C" __global__ void __launch_bounds__(THREADS) matmul_##F(const __grid_constant__ Matmul a) { matmul<F>(a); }
FOR_EACH_TYPE(INSTANCE)
