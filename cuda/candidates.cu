// The largest logits of a row, and what all others weigh, so that the host draws a token from a few hundred numbers and not from the row.
//
// Three launches over the same ranges of ids, a block each: the largest logit; how many logits lie how far below it, in bins of 1/32; what
// lies in the first bins that hold at most FOUND_MAX together. Results go straight to page-locked memory of the host, in an order of its own
// for each block; the host puts blocks together in theirs. What is left out is summed in double precision, in an order that depends on the
// shape alone: e^((logit - largest) / temperature).
//
// Shapes: logits (n_vocab) f32; allowed (n_vocab / 32) bits, or none; largest (blocks); counts (BINS + 1), the last one of entries taken;
// blocks (blocks) of {first entry, entries, sums}; entries (FOUND_MAX) of {id, logit}. Bytes moved: the row three times, from the L2.
#include "common.cuh"

#define BINS 1024u
#define BINS_PER_ONE 32.0f
// PART_TOKENS_MAX of src/sampling/part.rs.
#define FOUND_MAX 512u
// SEARCH_BLOCKS and SEARCH_THREADS of src/device/cuda/launch.rs.
#define BLOCKS 128u
#define THREADS 256u
#define NONE 0xffffffffu

struct Largest {
    float logit;
    uint32_t bad;  // the first id whose logit is NaN or positive infinity
};

struct FoundBlock {
    uint32_t first, entries;
    double rest, rest_at_one;
};

struct FoundEntry {
    uint32_t id;
    float logit;
};

// All of it is known when the last block is done: `whole` says that every logit that is not negative infinity is an entry.
struct FoundHead {
    float largest;
    uint32_t bad, whole, unused;
};

struct Search {
    const float *logits;
    const uint32_t *allowed;  // 0: all
    Largest *largest;
    uint32_t *counts;
    FoundHead *head;
    FoundBlock *blocks;
    FoundEntry *entries;
    uint32_t n_vocab, n_words;
    uint32_t run;          // ids a thread
    float temperature;     // of `rest`; 0: not wanted
    uint32_t wants_one, unused;
};

__device__ __forceinline__ bool is_left(const Search &s, uint32_t id, float logit) {
    const bool allowed = s.allowed == nullptr || (id / 32 < s.n_words && (s.allowed[id / 32] >> id % 32 & 1));
    return allowed && logit > -INFINITY;
}

__device__ __forceinline__ uint32_t bin_of(float logit, float largest) {
    return (uint32_t)fminf((largest - logit) * BINS_PER_ONE, (float)(BINS - 1));
}

// e^x as src/sampling/exp.rs has it, for x <= 0.
__device__ __forceinline__ double weigh(double x) {
    const double series[14] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0, 1.0 / 40320.0, 1.0 / 5040.0,
                               1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0};
    const double round = 6755399441055744.0;
    const double shifted = x * 1.4426950408889634 + round;
    const double n = shifted - round;
    const double r = (x - n * 6.931471803691238e-1) - n * 1.9082149292705877e-10;
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < 14; i++) sum = sum * r + series[i];
    const long long bits = __double_as_longlong(sum) + (__double_as_longlong(shifted) << 52);
    return x < -708.0 ? 0.0 : __longlong_as_double(bits);
}

__device__ __forceinline__ double block_sum_double(double v, double *room) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(ALL, v, d);
    __syncthreads();
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = v;
    __syncthreads();
    double sum = 0.0;
    for (uint32_t w = 0; w < THREADS / WARP; w++) sum += room[w];
    return sum;
}

// What comes before this thread's value in the block, and the block's sum.
__device__ __forceinline__ uint2 block_scan(uint32_t v, uint32_t *room) {
    uint32_t sum = v;
#pragma unroll
    for (uint32_t d = 1; d < WARP; d *= 2) {
        const uint32_t before = __shfl_up_sync(ALL, sum, d);
        if (threadIdx.x % WARP >= d) sum += before;
    }
    __syncthreads();
    if (threadIdx.x % WARP == WARP - 1) room[threadIdx.x / WARP] = sum;
    __syncthreads();
    uint32_t before = sum - v, all = 0;
    for (uint32_t w = 0; w < THREADS / WARP; w++) {
        if (w < threadIdx.x / WARP) before += room[w];
        all += room[w];
    }
    return make_uint2(before, all);
}

extern "C" __global__ void __launch_bounds__(THREADS) candidates_largest(const Search s) {
    let_next_start();
    wait_for_inputs();
    __shared__ float room[32];
    __shared__ uint32_t first_bad;
    if (blockIdx.x == 0)
        for (uint32_t i = threadIdx.x; i <= BINS; i += THREADS) s.counts[i] = 0;
    if (threadIdx.x == 0) first_bad = NONE;
    __syncthreads();
    const uint32_t begin = (blockIdx.x * THREADS + threadIdx.x) * s.run, end = min(begin + s.run, s.n_vocab);
    float largest = -INFINITY;
    for (uint32_t id = begin; id < end; id++) {
        const float logit = s.logits[id];
        if (isnan(logit) || logit == INFINITY) atomicMin(&first_bad, id);
        if (is_left(s, id, logit)) largest = fmaxf(largest, logit);
    }
    largest = block_max(largest, room);
    if (threadIdx.x == 0) s.largest[blockIdx.x] = {largest, first_bad};
}

// The largest logit of all blocks; every thread gets it.
__device__ __forceinline__ float largest_of_all(const Search &s, float *room) {
    return block_max(threadIdx.x < gridDim.x ? s.largest[threadIdx.x].logit : -INFINITY, room);
}

extern "C" __global__ void __launch_bounds__(THREADS) candidates_count(const Search s) {
    let_next_start();
    __shared__ float room[32];
    __shared__ uint32_t counts[BINS];
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) counts[i] = 0;
    wait_for_inputs();
    const float largest = largest_of_all(s, room);
    __syncthreads();
    const uint32_t begin = (blockIdx.x * THREADS + threadIdx.x) * s.run, end = min(begin + s.run, s.n_vocab);
    for (uint32_t id = begin; id < end; id++) {
        const float logit = s.logits[id];
        if (is_left(s, id, logit)) atomicAdd(&counts[bin_of(logit, largest)], 1u);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
        if (counts[i] > 0) atomicAdd(&s.counts[i], counts[i]);
}

// How many bins, from the first on, hold at most FOUND_MAX logits together; every thread gets it.
__device__ __forceinline__ uint32_t bins_that_fit(const Search &s, uint32_t *room) {
    uint32_t counts[BINS / THREADS], here = 0;
    for (uint32_t i = 0; i < BINS / THREADS; i++) here += counts[i] = s.counts[threadIdx.x * (BINS / THREADS) + i];
    uint32_t sum = block_scan(here, room).x, fit = 0;
    for (uint32_t i = 0; i < BINS / THREADS; i++) {
        sum += counts[i];
        fit += sum <= FOUND_MAX;
    }
    return block_scan(fit, room).y;
}

extern "C" __global__ void __launch_bounds__(THREADS) candidates_take(const Search s) {
    let_next_start();
    wait_for_inputs();
    __shared__ float room[32];
    __shared__ uint32_t scan_room[THREADS / WARP], first;
    __shared__ double sum_room[THREADS / WARP];
    const float largest = largest_of_all(s, room);
    const uint32_t fit = bins_that_fit(s, scan_room);
    const uint32_t begin = (blockIdx.x * THREADS + threadIdx.x) * s.run, end = min(begin + s.run, s.n_vocab);
    uint32_t entries = 0;
    double rest = 0.0, rest_at_one = 0.0;
    for (uint32_t id = begin; id < end; id++) {
        const float logit = s.logits[id];
        if (!is_left(s, id, logit)) continue;
        if (bin_of(logit, largest) < fit) {
            entries++;
            continue;
        }
        const double below = (double)logit - (double)largest;
        if (s.temperature > 0.0f) rest += weigh(below / (double)s.temperature);
        if (s.wants_one) rest_at_one += weigh(below);
    }
    const uint2 place = block_scan(entries, scan_room);
    if (threadIdx.x == 0) first = place.y > 0 ? atomicAdd(&s.counts[BINS], place.y) : 0;
    rest = block_sum_double(rest, sum_room);  // waits for `first`, too
    rest_at_one = block_sum_double(rest_at_one, sum_room);
    if (entries > 0) {
        FoundEntry *to = s.entries + first + place.x;
        for (uint32_t id = begin; id < end; id++) {
            const float logit = s.logits[id];
            if (is_left(s, id, logit) && bin_of(logit, largest) < fit) *to++ = {id, logit};
        }
    }
    if (threadIdx.x == 0) s.blocks[blockIdx.x] = {first, place.y, rest, rest_at_one};
    if (blockIdx.x == 0 && threadIdx.x < WARP) {
        uint32_t bad = NONE;
        for (uint32_t b = threadIdx.x; b < gridDim.x; b += WARP) bad = min(bad, s.largest[b].bad);
        bad = __reduce_min_sync(ALL, bad);
        if (threadIdx.x == 0) *s.head = {largest, bad, fit == BINS, 0};
    }
}

// The logits of `n` tokens. ids (n), out (n): both in page-locked memory of the host.
extern "C" __global__ void __launch_bounds__(THREADS) candidates_gather(const float *logits, const uint32_t *ids, uint32_t n, float *out) {
    let_next_start();
    wait_for_inputs();
    const uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n) out[i] = logits[ids[i]];
}
