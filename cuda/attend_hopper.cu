// Attention of many tokens over f16 pages by warpgroups: the same formula as attend.cu, tiles of 128 queries by 128 positions.
//
// Online softmax (Milakov & Gimelshein 2018), the schedule of FlashAttention-3 (Shah et al. 2024): a block holds 128 queries of one head and
// walks over the positions. Two warpgroups have 64 queries each: the scores of the next tile (wgmma, keys out of shared memory) are computed
// before the values of the last one are weighted (weights out of registers), so that softmax goes on under a product. Other warps bring tiles:
// keys lie in pages as the tensor cores take them, (head_dim / 8, positions, 8), and are copied as ranges; values, (positions, head_dim), are
// laid so on the way. Powers are of two, of scores times scale times log2(e).
// Shapes and page layout as attend.cu and rope.cu tell; head_dim is HD exactly.
// Bytes moved: keys and values of the visible positions once for every 128 queries and head, mostly from the second-level cache.
// Grid (ceil(n_tokens / 128), n_heads), 384 threads.
#include "attend_many.cuh"
#include "hopper.cuh"
#include "panels.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define QUERIES 128u
#define STAGES 2u
#define WORKERS 256u
#define BRINGERS 3u  // warps that bring values; one brings keys

template <int HD>
struct Shape {
    static constexpr uint32_t KEYS = HD == 256 ? 64 : 128;  // positions of a tile
    static constexpr uint32_t TILE = KEYS * HD;             // halves
};

// Keys and values of a tile, a barrier each that says they are there, and that they are done with.
struct Barriers {
    uint64_t keys[STAGES], values[STAGES], keys_done[STAGES], values_done[STAGES];
};

// What a block does.
struct Work {
    uint32_t token0, n_tokens, head, kv_head;
    uint32_t seen;          // position of the first query
    uint32_t begin, tiles;  // the first position that a query sees, at a tile's begin; tiles from there
    __device__ __forceinline__ Work(const AttendMany &a, uint32_t keys) {
        n_tokens = a.step->n_tokens;
        token0 = (gridDim.x - 1 - blockIdx.x) * QUERIES;  // the last queries see most: they start first
        head = blockIdx.y, kv_head = head / (a.n_heads / a.n_kv_heads);
        seen = a.step->position + token0;
        begin = a.window && seen + 1 > a.window ? (seen + 1 - a.window) / keys * keys : 0;
        tiles = tiles_to(min(QUERIES, n_tokens - token0), keys);
    }
    // Tiles that the first so many queries see.
    __device__ __forceinline__ uint32_t tiles_to(uint32_t queries, uint32_t keys) const { return (seen + queries - 1 - begin) / keys + 1; }
};

// Where a tile's keys lie; its values are HD * PAGE halves on, with rows of HD instead of 8.
template <int HD>
__device__ __forceinline__ const __half *page_of(const AttendMany &a, const Work &w, uint32_t page) {
    return (const __half *)a.pool + page * a.page_elements + a.layer_offset + (size_t)w.kv_head * 2 * HD * PAGE;
}

// One warp: eight columns of all keys of the tile are a range.
template <int HD>
__device__ __forceinline__ void bring_keys(const AttendMany &a, const Work &w, __half *room, Barriers &b) {
    constexpr uint32_t KEYS = Shape<HD>::KEYS, TILE = Shape<HD>::TILE;
    const uint32_t lane = threadIdx.x % WARP;
    for (uint32_t i = 0; i < w.tiles; i++) {
        const uint32_t stage = i % STAGES, p0 = w.begin + i * KEYS;
        const __half *from = page_of<HD>(a, w, a.step->pages[p0 / PAGE]) + p0 % PAGE * 8;
        barrier_wait(b.keys_done + stage, i / STAGES & 1 ^ 1);
        if (lane == 0) barrier_expect(b.keys + stage, TILE * 2);
        __syncwarp();
        if (lane < HD / 8) copy_range(room + stage * TILE + lane * KEYS * 8, from + (size_t)lane * PAGE * 8, KEYS * 16, b.keys + stage);
    }
}

// Three warps: a lane copies eight columns of a position, a warp's access those of eight positions, four times.
template <int HD>
__device__ __forceinline__ void bring_values(const AttendMany &a, const Work &w, __half *room, Barriers &b, uint32_t warp) {
    constexpr uint32_t KEYS = Shape<HD>::KEYS, TILE = Shape<HD>::TILE;
    const uint32_t lane = threadIdx.x % WARP;
    for (uint32_t i = 0; i < w.tiles; i++) {
        const uint32_t stage = i % STAGES, p0 = w.begin + i * KEYS;
        const __half *from = page_of<HD>(a, w, a.step->pages[p0 / PAGE]) + HD * PAGE + (size_t)(p0 % PAGE + lane % 8) * HD + lane / 8 * 8;
        __half *to = room + stage * TILE + lane / 8 * KEYS * 8 + lane % 8 * 8;
        barrier_wait(b.values_done + stage, i / STAGES & 1 ^ 1);
#pragma unroll 4
        for (uint32_t n = warp; n < KEYS / 8 * (HD / 32); n += BRINGERS) {
            const uint32_t keys = n / (HD / 32) * 8, columns = n % (HD / 32) * 32;
            copy16(to + columns * KEYS + keys * 8, from + keys * HD + columns);
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
        show_to_tensor_cores();
        __syncwarp();
        if (lane == 0) barrier_arrive(b.values + stage);
    }
}

// Sixteen queries of a warp, two rows a lane: lane / 4 and lane / 4 + 8.
template <int HD>
struct Rows16 {
    float out[HD / 2], largest[2], sum[2];
};

// Scores become weights, 2^(factor * (score - largest)); what the values so far must be multiplied by.
template <int N>
__device__ __forceinline__ void soften(float (&s)[N], float (&largest)[2], float (&sum)[2], float (&shrink)[2], float factor) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float newest = largest[r];
#pragma unroll
        for (int n = 2 * r; n < N; n += 4) newest = fmaxf(newest, fmaxf(s[n], s[n + 1]));
        newest = fmaxf(newest, __shfl_xor_sync(ALL, newest, 1));
        newest = fmaxf(newest, __shfl_xor_sync(ALL, newest, 2));
        shrink[r] = newest > largest[r] ? power_of_two((largest[r] - newest) * factor) : 1.0f;
        largest[r] = newest;
        const float from = newest == -INFINITY ? 0.0f : -newest * factor;
        float more = 0.0f;
#pragma unroll
        for (int n = 2 * r; n < N; n += 4)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                s[n + i] = power_of_two(fmaf(s[n + i], factor, from));
                more += s[n + i];
            }
        sum[r] = fmaf(sum[r], shrink[r], more);
    }
}

// Scores of positions that a query does not see become nothing. `of`: position of the lane's first row.
template <int N>
__device__ __forceinline__ void hide(float (&s)[N], uint32_t p0, uint32_t of, uint32_t window) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        const uint32_t query = of + n / 2 % 2 * 8, key = p0 + n / 4 * 8 + 2 * (threadIdx.x % 4) + n % 2;
        if (key > query || (window && key + window <= query)) s[n] = -INFINITY;
    }
}

// What is computed of values above this line is not computed below it, and the other way round: neither before a product has written them, nor
// once the wait for the next one is over.
template <int N>
__device__ __forceinline__ void settle(float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(v[i])::"memory");
}

// 64 queries of the block: q in shared memory, (HD / 8, QUERIES, 8).
template <int HD>
__device__ __forceinline__ void bring_queries(const AttendMany &a, const Work &w, __half *qs) {
    for (uint32_t i = threadIdx.x % 128; i < 64 * HD / 8; i += 128) {
        const uint32_t row = i / (HD / 8), c = i % (HD / 8), t = w.token0 + threadIdx.x / 128 * 64 + row;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f), y = x;
        if (t < w.n_tokens) {
            const float4 *q = (const float4 *)(a.q + (size_t)t * a.q_stride + w.head * HD + 8 * c);
            x = q[0], y = q[1];
        }
        *(uint4 *)(qs + (c * QUERIES + row) * 8) = make_uint4(pack(x.x, x.y), pack(x.z, x.w), pack(y.x, y.y), pack(y.z, y.w));
    }
    show_to_tensor_cores();
    asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory");
}

template <int HD>
__device__ __forceinline__ void store_rows(const AttendMany &a, const Work &w, const Rows16<HD> &rows, uint32_t token, float factor) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sum = rows.sum[r], shrink = 1.0f;
        sum += __shfl_xor_sync(ALL, sum, 1);
        sum += __shfl_xor_sync(ALL, sum, 2);
        if (a.sinks) {
            const float sink = a.sinks[w.head] * LOG2_E, largest = rows.largest[r] * factor, top = fmaxf(largest, sink);
            shrink = power_of_two(largest - top);
            sum = sum * shrink + power_of_two(sink - top);
        }
        const uint32_t t = token + 8 * r;
        if (t >= w.n_tokens) continue;
        const uint32_t column = w.head * HD + 2 * (threadIdx.x % 4);
        const float share = shrink / sum;
        if (a.half_out) {  // not more than the largest value, so that halves hold it
#pragma unroll
            for (int n = 2 * r; n < HD / 2; n += 4)
                *(uint32_t *)(a.half_out + in_panels(a.half_rows, t, column + 2 * (n - 2 * r))) = pack(rows.out[n] * share, rows.out[n + 1] * share);
            continue;
        }
        float *to = a.out + (size_t)t * a.out_stride + column;
#pragma unroll
        for (int n = 2 * r; n < HD / 2; n += 4) *(float2 *)(to + 2 * (n - 2 * r)) = make_float2(rows.out[n] * share, rows.out[n + 1] * share);
    }
}

// Two warpgroups: 64 queries each.
template <int HD>
__device__ __forceinline__ void attend_tiles(const AttendMany &a, const Work &w, __half *qs, const __half *ks, const __half *vs, Barriers &b) {
    constexpr uint32_t KEYS = Shape<HD>::KEYS, TILE = Shape<HD>::TILE;
    const uint32_t lane = threadIdx.x % WARP, group = threadIdx.x / 128, first = 64 * group;
    const float twice = 2.0f * LOG2_E * a.scale / a.softcap;
    const float factor = a.softcap > 0.0f ? LOG2_E : a.scale * LOG2_E;
    const uint32_t mine = w.seen + 16 * (threadIdx.x / WARP);  // position of the warp's first query
    const uint32_t left = w.n_tokens - w.token0;
    if (left <= first) return;
    const uint32_t tiles = w.tiles_to(min(first + 64, left), KEYS);
    qs += first * 8;
    bring_queries<HD>(a, w, qs);
    Rows16<HD> rows;
#pragma unroll
    for (int n = 0; n < HD / 2; n++) rows.out[n] = 0.0f;
#pragma unroll
    for (int r = 0; r < 2; r++) rows.largest[r] = -INFINITY, rows.sum[r] = 0.0f;

    float s[KEYS / 2], shrink[2];
    uint32_t p[KEYS / 16][4];
    auto await_keys = [&](uint32_t i) {
        if (i < tiles) barrier_wait(b.keys + i % STAGES, i / STAGES & 1);
    };
    auto score = [&](uint32_t i) {
        const uint64_t of_q = eights(qs, QUERIES * 16, 128), of_k = eights(ks + i % STAGES * TILE, KEYS * 16, 128);
        products_begin();
#pragma unroll
        for (int k = 0; k < HD / 16; k++) product(s, of_q + k * (2 * QUERIES), of_k + k * (2 * KEYS), k > 0);
        products_commit();
    };
    auto weigh = [&](uint32_t i) {
        barrier_wait(b.values + i % STAGES, i / STAGES & 1);
        const uint64_t of_v = eights(vs + i % STAGES * TILE, 128, KEYS * 16);
        products_begin();
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) product_of_rows(rows.out, p[k], of_v + k * 16);
        products_commit();
    };
    auto done = [&](uint64_t *barriers, uint32_t i) {
        if (lane == 0) barrier_arrive(barriers + i % STAGES);
    };
    auto soft = [&](uint32_t i) {
        const uint32_t p0 = w.begin + i * KEYS;
        settle(s);
        if (a.softcap > 0.0f) {
#pragma unroll
            for (int n = 0; n < KEYS / 2; n++) s[n] = a.softcap - __fdividef(2.0f * a.softcap, 1.0f + power_of_two(s[n] * twice));  // softcap * tanh(s * scale / softcap)
        }
        // all of the warp's queries see all of the tile, but at its two ends
        if (p0 + KEYS - 1 > mine || (a.window && p0 + a.window <= mine + 15)) hide(s, p0, mine + lane / 4, a.window);
        soften(s, rows.largest, rows.sum, shrink, factor);
        settle(s);
    };
    auto halve = [&]() {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
            for (int n = 0; n < 4; n++) p[k][n] = pack(s[8 * k + 2 * n], s[8 * k + 2 * n + 1]);
    };
    await_keys(0);
    score(0);
    products_wait<0>();
    done(b.keys_done, 0);
    soft(0);
    await_keys(1);
    halve();
    for (uint32_t i = 1; i < tiles; i++) {
        score(i);
        weigh(i - 1);
        products_wait<1>();
        done(b.keys_done, i);
        soft(i);
        await_keys(i + 1);  // a branch, so that the instructions of softmax stay before the wait
        products_wait<0>();
        done(b.values_done, i - 1);
        settle(rows.out);
#pragma unroll
        for (int n = 0; n < HD / 2; n++) rows.out[n] *= shrink[n / 2 % 2];
        halve();
    }
    weigh(tiles - 1);
    products_wait<0>();
    settle(rows.out);
    store_rows<HD>(a, w, rows, w.token0 + 16 * (threadIdx.x / WARP) + lane / 4, factor);
}

template <int HD>
__device__ __forceinline__ void attend(const AttendMany &a) {
    extern __shared__ __align__(128) __half shared[];
    __shared__ Barriers b;
    __half *ks = shared + QUERIES * HD, *vs = ks + STAGES * Shape<HD>::TILE;
    let_next_start();
    wait_for_inputs();
    const Work w(a, Shape<HD>::KEYS);
    if (w.token0 >= w.n_tokens) return;
    if (threadIdx.x == 0) {
        const uint32_t workers = w.n_tokens - w.token0 > 64 ? WORKERS / WARP : WORKERS / WARP / 2;
        for (uint32_t s = 0; s < STAGES; s++) {
            barrier_init(b.keys + s, 1);
            barrier_init(b.values + s, BRINGERS);
            barrier_init(b.keys_done + s, workers);
            barrier_init(b.values_done + s, workers);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        show_to_tensor_cores();
    }
    __syncthreads();
    // of the launch's 168 registers each
    if (threadIdx.x < WORKERS) {
        take_registers<232>();
        attend_tiles<HD>(a, w, shared, ks, vs, b);
    } else {
        give_registers<40>();
        const uint32_t warp = (threadIdx.x - WORKERS) / WARP;
        if (warp == 0) {
            bring_keys<HD>(a, w, ks, b);
        } else {
            bring_values<HD>(a, w, vs, b, warp - 1);
        }
    }
}

#define INSTANCE(HD) \
    extern "C" __global__ void __launch_bounds__(WORKERS + 128, 1) attend_hopper_##HD(const __grid_constant__ AttendMany a) { attend<HD>(a); }
INSTANCE(64) INSTANCE(96) INSTANCE(128) INSTANCE(256)

#endif

// Code for other cards has this alone, so that there is something to load; the host looks for the others by name.
extern "C" __global__ void attend_hopper() {}
