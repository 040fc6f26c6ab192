// Attention of many tokens over f16 pages on the tensor cores: the same formula as attend.cu, tiles of 64 queries by 64 positions.
//
// Online softmax (Milakov & Gimelshein 2018, Dao 2023): a block holds 64 queries of one head and walks over the positions; scores and weighted
// values are m16n8k16 products with f32 accumulators. Shapes and page layout as attend.cu and rope.cu tell; head_dim is HD exactly.
// Bytes moved: keys and values of the visible positions once for every 64 queries and head, mostly from the second-level cache.
// Grid (ceil(n_tokens / 64), n_heads), 128 threads: a warp has 16 queries.
#include "tensor_core.cuh"

#define QUERIES 64
#define KEYS 64

struct AttendMany {
    const Step *step;
    const float *q;
    const u8 *pool;
    float *out;
    const float *sinks;  // (n_heads), or null
    uint64_t page_elements, layer_offset;
    uint32_t n_heads, n_kv_heads;
    uint32_t q_stride, out_stride;
    uint32_t window;
    float scale, softcap;
};

__device__ __forceinline__ void ldmatrix4_transposed(uint32_t (&r)[4], const __half *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)));
}

__device__ __forceinline__ void copy16(__half *to, const __half *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from));
}

__device__ __forceinline__ uint32_t pack(float a, float b) {
    const __half2 h = __floats2half2_rn(a, b);
    return *(const uint32_t *)&h;
}

template <int HD>
__device__ __forceinline__ void attend_many(const AttendMany &a) {
    let_next_start();
    wait_for_inputs();
    constexpr int PITCH = HD + 8;
    extern __shared__ __align__(16) __half shared[];
    __half *qs = shared, *ks = qs + QUERIES * PITCH, *vs = ks + KEYS * PITCH;
    const uint32_t n_tokens = a.step->n_tokens, base = a.step->position;
    // the last queries see most: they start first
    const uint32_t token0 = (gridDim.x - 1 - blockIdx.x) * QUERIES, head = blockIdx.y, kv_head = head / (a.n_heads / a.n_kv_heads);
    const uint32_t thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    if (token0 >= n_tokens) return;
    for (uint32_t i = thread; i < QUERIES * HD; i += blockDim.x) {
        const uint32_t t = token0 + i / HD;
        qs[i / HD * PITCH + i % HD] = __float2half_rn(t < n_tokens ? a.q[(size_t)t * a.q_stride + head * HD + i % HD] : 0.0f);
    }
    const uint32_t last = base + min(token0 + QUERIES, n_tokens) - 1;  // the newest position that a query here sees
    const uint32_t seen = base + token0;                                // position of the first query
    const uint32_t begin = a.window && seen + 1 > a.window ? (seen + 1 - a.window) / KEYS * KEYS : 0;

    float out[HD / 8][4], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < HD / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[n][i] = 0.0f;

    for (uint32_t p0 = begin; p0 <= last; p0 += KEYS) {
        const __half *page = (const __half *)a.pool + a.step->pages[p0 / PAGE] * a.page_elements + a.layer_offset + (size_t)kv_head * 2 * HD * PAGE;
        __syncthreads();
        for (uint32_t i = thread; i < KEYS * HD / 8; i += blockDim.x) {
            const uint32_t key = i % KEYS, c = i / KEYS;  // keys lie as (HD / 8, PAGE, 8)
            copy16(ks + key * PITCH + 8 * c, page + ((size_t)c * PAGE + p0 % PAGE + key) * 8);
        }
        for (uint32_t i = thread; i < KEYS * HD / 8; i += blockDim.x) {
            const uint32_t key = i / (HD / 8), c = i % (HD / 8);
            copy16(vs + key * PITCH + 8 * c, page + (size_t)HD * PAGE + (size_t)(p0 % PAGE + key) * HD + 8 * c);
        }
        asm volatile("cp.async.wait_all;");
        __syncthreads();

        float s[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < HD; k += 16) {
            uint32_t qa[4];
            ldmatrix4(qa, qs + (16 * warp + lane % 16) * PITCH + k + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                uint32_t kb[4];
                ldmatrix4(kb, ks + (8 * n + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
                mma(s[n], qa, kb[0], kb[1]);
                mma(s[n + 1], qa, kb[2], kb[3]);
            }
        }
        // rows lane / 4 and lane / 4 + 8 of the warp's queries
        float newest[2] = {largest[0], largest[1]};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t position = base + token0 + 16 * warp + lane / 4 + 8 * (i / 2), key = p0 + 8 * n + 2 * (lane % 4) + i % 2;
                float v = s[n][i] * a.scale;
                if (a.softcap > 0.0f) v = a.softcap * tanhf(v / a.softcap);
                if (key > position || (a.window && key + a.window <= position)) v = -INFINITY;
                s[n][i] = v;
                newest[i / 2] = fmaxf(newest[i / 2], v);
            }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            newest[r] = fmaxf(newest[r], __shfl_xor_sync(ALL, newest[r], 1));
            newest[r] = fmaxf(newest[r], __shfl_xor_sync(ALL, newest[r], 2));
            const float shrink = newest[r] == -INFINITY ? 1.0f : expf(largest[r] - newest[r]);
            largest[r] = newest[r];
            sum[r] *= shrink;
#pragma unroll
            for (int n = 0; n < HD / 8; n++) out[n][2 * r] *= shrink, out[n][2 * r + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] = s[n][i] == -INFINITY ? 0.0f : expf(s[n][i] - largest[i / 2]);
                sum[i / 2] += s[n][i];
            }
#pragma unroll
        for (int k = 0; k < KEYS; k += 16) {
            const uint32_t pa[4] = {pack(s[k / 8][0], s[k / 8][1]), pack(s[k / 8][2], s[k / 8][3]), pack(s[k / 8 + 1][0], s[k / 8 + 1][1]),
                                    pack(s[k / 8 + 1][2], s[k / 8 + 1][3])};
#pragma unroll
            for (int n = 0; n < HD / 8; n += 2) {
                uint32_t vb[4];
                ldmatrix4_transposed(vb, vs + (k + lane % 16) * PITCH + 8 * n + lane / 16 * 8);
                mma(out[n], pa, vb[0], vb[1]);
                mma(out[n + 1], pa, vb[2], vb[3]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(ALL, sum[r], 1);
        sum[r] += __shfl_xor_sync(ALL, sum[r], 2);
        float shrink = 1.0f;
        if (a.sinks) {
            const float sink = a.sinks[head], top = fmaxf(largest[r], sink);
            shrink = expf(largest[r] - top);
            sum[r] = sum[r] * shrink + expf(sink - top);
        }
        const uint32_t t = token0 + 16 * warp + lane / 4 + 8 * r;
        if (t >= n_tokens) continue;
        float *to = a.out + (size_t)t * a.out_stride + head * HD;
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
            to[8 * n + 2 * (lane % 4)] = out[n][2 * r] * shrink / sum[r];
            to[8 * n + 2 * (lane % 4) + 1] = out[n][2 * r + 1] * shrink / sum[r];
        }
    }
}

#define INSTANCE(HD) \
    extern "C" __global__ void __launch_bounds__(128) attend_many_##HD(const __grid_constant__ AttendMany a) { attend_many<HD>(a); }
INSTANCE(64) INSTANCE(96) INSTANCE(128) INSTANCE(256)
