// Mixture of experts: which experts a token goes to, and the sum of what they say.
//
// route: the n_used largest of a token's router logits (of equal ones the lower number), with weights
//   softmax over the chosen ones (gating 0), or the softmax over all (1), or that divided by the chosen ones' sum (2); all times `scale`.
// group: sorts the slots (token t and its k-th expert is slot t * n_used + k) by expert, within an expert by number, each expert from a
//   multiple of 8 on; and the tiles of at most `tile` rows in which each expert's are multiplied.
// combine: x[t] += factor * sum_k weights[t][k] * y[t * n_used + k], k in order.
// Shapes: logits (n_tokens, n_experts), ids and weights (n_tokens, n_used), y (n_tokens * n_used, width), x (n_tokens, width).
#include "matmul.cuh"

struct Route {
    const float *logits;
    const float *bias;  // (n_experts), added for the choice alone, or null
    uint32_t *ids;
    float *weights;
    uint32_t n_experts, n_used, n_tokens;
    uint32_t gating;
    float scale;
};

// One warp a token.
extern "C" __global__ void __launch_bounds__(32) route(const __grid_constant__ Route a) {
    let_next_start();
    wait_for_inputs();
    const uint32_t t = blockIdx.x, lane = threadIdx.x;
    const float *logits = a.logits + (size_t)t * a.n_experts;
    float largest = -INFINITY;
    for (uint32_t e = lane; e < a.n_experts; e += WARP) largest = fmaxf(largest, logits[e]);
    largest = warp_max(largest);
    float all = 0.0f;
    for (uint32_t e = lane; e < a.n_experts; e += WARP) all += expf(logits[e] - largest);
    all = warp_sum(all);
    uint32_t *ids = a.ids + (size_t)t * a.n_used;
    float *weights = a.weights + (size_t)t * a.n_used, sum = 0.0f;
    for (uint32_t k = 0; k < a.n_used; k++) {
        float best = -INFINITY;
        uint32_t which = 0xffffffffu;
        for (uint32_t e = lane; e < a.n_experts; e += WARP) {
            bool taken = false;
            for (uint32_t j = 0; j < k; j++) taken |= ids[j] == e;
            const float v = logits[e] + (a.bias ? a.bias[e] : 0.0f);
            if (!taken && (v > best || which == 0xffffffffu)) best = v, which = e;
        }
        for (int d = 16; d > 0; d /= 2) {
            const float other = __shfl_xor_sync(ALL, best, d);
            const uint32_t other_which = __shfl_xor_sync(ALL, which, d);
            if (other_which != 0xffffffffu && (which == 0xffffffffu || other > best || (other == best && other_which < which))) best = other, which = other_which;
        }
        const float w = expf(logits[which] - largest);
        sum += w;
        if (lane == 0) ids[k] = which, weights[k] = w;
        __syncwarp();
    }
    const float divisor = a.gating == 1 ? all : sum;
    __syncwarp();
    for (uint32_t k = lane; k < a.n_used; k += WARP) weights[k] = weights[k] / divisor * a.scale;
}

struct Group {
    const uint32_t *ids;  // (n_slots)
    Groups *groups;
    ExpertTile *tiles;  // (n_slots / tile + n_experts)
    uint32_t *order;    // (n_slots + 8 n_experts): the slot that a row is of, or NOBODY
    uint32_t n_slots, n_experts;
    uint32_t tile;
};

// One block an expert; dynamic shared memory: a count for each expert.
extern "C" __global__ void __launch_bounds__(256) group(const __grid_constant__ Group a) {
    extern __shared__ uint32_t counts[];
    __shared__ uint32_t before[2], in_warp[8];
    const uint32_t mine = blockIdx.x, thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    let_next_start();
    wait_for_inputs();
    for (uint32_t e = thread; e < a.n_experts; e += blockDim.x) counts[e] = 0;
    if (thread < 2) before[thread] = 0;
    __syncthreads();
    for (uint32_t s = thread; s < a.n_slots; s += blockDim.x) atomicAdd(counts + a.ids[s], 1u);
    __syncthreads();
    for (uint32_t e = thread; e < mine; e += blockDim.x) {
        atomicAdd(before, (counts[e] + 7) / 8 * 8);
        atomicAdd(before + 1, (counts[e] + a.tile - 1) / a.tile);
    }
    __syncthreads();
    const uint32_t first = before[0], count = counts[mine], end = first + (count + 7) / 8 * 8;
    const uint32_t first_tile = before[1], n_tiles = (count + a.tile - 1) / a.tile;
    uint32_t placed = first;
    for (uint32_t s0 = 0; s0 < a.n_slots; s0 += blockDim.x) {
        const uint32_t s = s0 + thread;
        const bool is_mine = s < a.n_slots && a.ids[s] == mine;
        const uint32_t those = __ballot_sync(ALL, is_mine);
        if (lane == 0) in_warp[warp] = __popc(those);
        __syncthreads();
        uint32_t at = placed + __popc(those & ((1u << lane) - 1));
        for (uint32_t w = 0; w < 8; w++) {
            if (w < warp) at += in_warp[w];
            placed += in_warp[w];
        }
        if (is_mine) a.order[at] = s;
        __syncthreads();
    }
    if (thread < end - first - count) a.order[first + count + thread] = NOBODY;
    for (uint32_t i = thread; i < n_tiles; i += blockDim.x) a.tiles[first_tile + i] = {mine, first + i * a.tile, min(a.tile, count - i * a.tile), 0};
    if (mine == a.n_experts - 1 && thread == 0) *a.groups = {first_tile + n_tiles, end};
}

extern "C" __global__ void combine(float *x, const float *y, const float *weights, uint32_t width, uint32_t n_used, float factor) {
    let_next_start();
    wait_for_inputs();
    const uint32_t c = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (c >= width) return;
    float sum = 0.0f;
    for (uint32_t k = 0; k < n_used; k++) sum = fmaf(weights[(size_t)t * n_used + k], y[((size_t)t * n_used + k) * width + c], sum);
    x[(size_t)t * width + c] += factor * sum;
}
