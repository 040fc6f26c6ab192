// Attention of many tokens over f16 pages on the tensor cores: the same formula as attend.cu, tiles of 128 queries by 64 positions.
//
// Online softmax (Milakov & Gimelshein 2018, Dao 2023): a block holds 128 queries of one head (64 where heads are wide) and walks over the
// positions; scores and weighted values are m16n8k16 products with f32 accumulators. A warp has 32 queries, so that a fragment of keys or
// values is used twice; the next tile is on its way while one is worked on. Powers are of two, of scores times scale times log2(e).
// Shapes and page layout as attend.cu and rope.cu tell; head_dim is HD exactly.
// Bytes moved: keys and values of the visible positions once for every 128 queries and head, mostly from the second-level cache.
// Grid (ceil(n_tokens / queries), n_heads), 128 threads.
#include "attend_many.cuh"

#define KEYS 64

__device__ __forceinline__ void ldmatrix4_transposed(uint32_t (&r)[4], const __half *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}

// Sixteen queries of a warp: two rows a lane, lane / 4 and lane / 4 + 8.
template <int HD>
struct Rows16 {
    float out[HD / 8][4], largest[2], sum[2];
};

// What one tile of scores does to a row's largest, sum and values; scores become weights, 2^(factor * (score - largest)).
template <int HD>
__device__ __forceinline__ void soften(Rows16<HD> &rows, float (&s)[KEYS / 8][4], float factor) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float newest = rows.largest[r];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) newest = fmaxf(newest, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        newest = fmaxf(newest, __shfl_xor_sync(ALL, newest, 1));
        newest = fmaxf(newest, __shfl_xor_sync(ALL, newest, 2));
        const bool grew = newest > rows.largest[r];
        if (__any_sync(ALL, grew)) {
            const float shrink = grew ? power_of_two((rows.largest[r] - newest) * factor) : 1.0f;
            rows.largest[r] = newest;
            rows.sum[r] *= shrink;
#pragma unroll
            for (int n = 0; n < HD / 8; n++) rows.out[n][2 * r] *= shrink, rows.out[n][2 * r + 1] *= shrink;
        }
        const float from = rows.largest[r] == -INFINITY ? 0.0f : -rows.largest[r] * factor;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                s[n][i] = power_of_two(fmaf(s[n][i], factor, from));
                rows.sum[r] += s[n][i];
            }
    }
}

// M: sixteens of queries a warp.
template <int HD, int M>
__device__ __forceinline__ void attend_many(const AttendMany &a) {
    let_next_start();
    wait_for_inputs();
    constexpr int PITCH = HD + 8, QUERIES = 64 * M;
    extern __shared__ __align__(16) __half shared[];
    __half *qs = shared, *ks = qs + QUERIES * PITCH, *vs = ks + 2 * KEYS * PITCH;
    const uint32_t n_tokens = a.step->n_tokens, base = a.step->position;
    const uint32_t *pages = a.step->pages;
    // the last queries see most: they start first
    const uint32_t token0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, head = blockIdx.y, kv_head = head / (a.n_heads / a.n_kv_heads);
    const uint32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    if (token0 >= n_tokens) return;
    const uint32_t last = base + min(token0 + QUERIES, n_tokens) - 1;  // the newest position that a query here sees
    const uint32_t seen = base + token0;                                // position of the first query
    const uint32_t begin = a.window && seen + 1 > a.window ? (seen + 1 - a.window) / KEYS * KEYS : 0;

    uint32_t next_page = pages[begin / PAGE];
    auto bring = [&](uint32_t p0) {
        const __half *page = (const __half *)a.pool + next_page * a.page_elements + a.layer_offset + (size_t)kv_head * 2 * HD * PAGE;
        __half *k = ks + (p0 / KEYS & 1) * KEYS * PITCH, *v = vs + (p0 / KEYS & 1) * KEYS * PITCH;
#pragma unroll
        for (int i = 0; i < KEYS * HD / 8 / 128; i++) {
            const uint32_t of = thread + i * 128, key = of % KEYS, c = of / KEYS;  // keys lie as (HD / 8, PAGE, 8)
            copy16(k + key * PITCH + 8 * c, page + ((size_t)c * PAGE + p0 % PAGE + key) * 8);
        }
#pragma unroll
        for (int i = 0; i < KEYS * HD / 8 / 128; i++) {
            const uint32_t of = thread + i * 128, key = of / (HD / 8), c = of % (HD / 8);
            copy16(v + key * PITCH + 8 * c, page + (size_t)HD * PAGE + (size_t)(p0 % PAGE + key) * HD + 8 * c);
        }
        asm volatile("cp.async.commit_group;");
        if (p0 + KEYS <= last) next_page = pages[(p0 + KEYS) / PAGE];
    };
    bring(begin);
    for (uint32_t i = thread; i < QUERIES * HD / 4; i += blockDim.x) {
        const uint32_t row = i / (HD / 4), c = i % (HD / 4) * 4, t = token0 + row;
        float4 q = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (t < n_tokens) q = *(const float4 *)(a.q + (size_t)t * a.q_stride + head * HD + c);
        *(uint2 *)(qs + row * PITCH + c) = make_uint2(pack(q.x, q.y), pack(q.z, q.w));
    }

    Rows16<HD> rows[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < HD / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) rows[m].out[n][i] = 0.0f;
#pragma unroll
        for (int r = 0; r < 2; r++) rows[m].largest[r] = -INFINITY, rows[m].sum[r] = 0.0f;
    }
    const float factor = a.softcap > 0.0f ? LOG2_E : a.scale * LOG2_E;
    const uint32_t row0 = 16 * M * warp, mine = seen + row0;  // position of the warp's first query

    for (uint32_t p0 = begin; p0 <= last; p0 += KEYS) {
        asm volatile("cp.async.wait_all;");
        __syncthreads();
        if (p0 + KEYS <= last) bring(p0 + KEYS);
        if (p0 > mine + 16 * M - 1) continue;  // none of the warp's queries sees the tile
        const __half *k_tile = ks + (p0 / KEYS & 1) * KEYS * PITCH, *v_tile = vs + (p0 / KEYS & 1) * KEYS * PITCH;

        float s[M][KEYS / 8][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < HD; k += 16) {
            uint32_t qa[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) ldmatrix4(qa[m], qs + (row0 + 16 * m + lane % 16) * PITCH + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                uint32_t kb[4];
                ldmatrix4(kb, k_tile + (8 * n + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(s[m][n], qa[m], kb[0], kb[1]);
                    mma(s[m][n + 1], qa[m], kb[2], kb[3]);
                }
            }
        }
        // all of the warp's queries see all of the tile, but at its two ends
        const bool whole = p0 + KEYS - 1 <= mine && (!a.window || p0 + a.window > mine + 16 * M - 1);
#pragma unroll
        for (int m = 0; m < M; m++) {
            if (a.softcap > 0.0f) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) s[m][n][i] = a.softcap * tanhf(s[m][n][i] * a.scale / a.softcap);
            }
            if (!whole) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const uint32_t of = mine + 16 * m + lane / 4 + 8 * (i / 2), key = p0 + 8 * n + 2 * (lane % 4) + i % 2;
                        if (key > of || (a.window && key + a.window <= of)) s[m][n][i] = -INFINITY;
                    }
            }
            soften<HD>(rows[m], s[m], factor);
        }
#pragma unroll
        for (int k = 0; k < KEYS; k += 16) {
            uint32_t pa[M][4];
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) pa[m][i] = pack(s[m][k / 8 + i / 2][i % 2 * 2], s[m][k / 8 + i / 2][i % 2 * 2 + 1]);
#pragma unroll
            for (int n = 0; n < HD / 8; n += 2) {
                uint32_t vb[4];
                ldmatrix4_transposed(vb, v_tile + (k + lane % 16) * PITCH + 8 * n + lane / 16 * 8);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(rows[m].out[n], pa[m], vb[0], vb[1]);
                    mma(rows[m].out[n + 1], pa[m], vb[2], vb[3]);
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = rows[m].sum[r], shrink = 1.0f;
            sum += __shfl_xor_sync(ALL, sum, 1);
            sum += __shfl_xor_sync(ALL, sum, 2);
            if (a.sinks) {
                const float sink = a.sinks[head] * LOG2_E, largest = rows[m].largest[r] * factor, top = fmaxf(largest, sink);
                shrink = power_of_two(largest - top);
                sum = sum * shrink + power_of_two(sink - top);
            }
            const uint32_t t = token0 + row0 + 16 * m + lane / 4 + 8 * r;
            if (t >= n_tokens) continue;
            float *to = a.out + (size_t)t * a.out_stride + head * HD + 2 * (lane % 4);
            const float share = shrink / sum;
#pragma unroll
            for (int n = 0; n < HD / 8; n++) *(float2 *)(to + 8 * n) = make_float2(rows[m].out[n][2 * r] * share, rows[m].out[n][2 * r + 1] * share);
        }
}

// Names for the host: width of a head, queries of a block. Not every card has the shared memory for 128 queries of 128.
#define INSTANCE(HD, QUERIES) \
    extern "C" __global__ void __launch_bounds__(128, QUERIES / 64) attend_many_##HD##_##QUERIES(const __grid_constant__ AttendMany a) { \
        attend_many<HD, QUERIES / 64>(a);                                                                                               \
    }
INSTANCE(64, 128) INSTANCE(96, 128) INSTANCE(128, 128) INSTANCE(128, 64) INSTANCE(256, 64)
