// x[t] = scale * table[token[t]] (+ positions[position + t]).
//
// Shapes: table (n_vocab, cols) in planes, any type; positions likewise, (context, cols); x (n_tokens, width) f32.
// Bytes moved: a row of the table a token. Grid (units / 32, n_tokens).
#include "quant.cuh"

struct Embed {
    Rows table;
    const Step *step;
    float *x;
    uint32_t cols;  // padded
    uint32_t width;
    float scale;
    uint32_t add;  // 1: row position + t is added to x; 0: row token[t] is set, scaled
};

template <class F>
__device__ __forceinline__ void embed(const Embed &a) {
    let_next_start();
    wait_for_inputs();
    const uint32_t u = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y, units = a.cols / F::UNIT;
    if (u >= units || t >= a.step->n_tokens) return;
    const size_t row = a.add ? a.step->position + t : a.step->tokens[t];
    float w[F::UNIT];
    F::decode(F::load(row_of<F>(a.table, row), u), w);
    float *to = a.x + (size_t)t * a.width;
#pragma unroll
    for (int i = 0; i < F::UNIT; i++) {
        const uint32_t c = F::column(u) + F::offset(i);
        if (c < a.width) to[c] = a.add ? to[c] + w[i] : a.scale * w[i];
    }
}

#define INSTANCE(F) \
    extern "C" __global__ void embed_##F(const __grid_constant__ Embed a) { embed<F>(a); }
FOR_EACH_TYPE(INSTANCE)
