// The softmax of the tensor-core attention kernels, one block of 64 keys at a time, in registers.
//
// A block is summed up on its own: m = max of its scores, p = 2^(score - m), l = sum of p, o = p · v, and joins what
// came before by merge(): a chain over the blocks of a sequence in ascending order. Unlike the running-maximum form, no
// block needs its predecessors before it joins the chain, so decode may give the blocks of one row to different warps
// and CTAs and still carry out, operation by operation, the chain that prefill carries out in registers: equal bits. A
// block that a row does not see joins as (-inf, 0, 0), which changes nothing. Scores are in units of log2 from here on:
// scale * log2(e) is folded into the fma that feeds ex2. Sums are taken in f32 before p is rounded to 16 bits. mul_rn
// keeps the compiler from fusing a product into a sum in one kernel and not in the other. Source: Milakov and
// Gimelshein 2018; Dao 2023 (FlashAttention-2).
#pragma once

#include "attention_problem.cuh"
#include "prims/dtype.h"
#include "prims/math.h"

namespace qformer::cuda {

constexpr float kLog2E = 1.44269504088896340736f;

QF_DEVICE float negative_infinity() { return -INFINITY; }

// The state of one row over the blocks seen so far; o lies elsewhere.
struct RowState {
  float max, sum;
};

// What a merge does to o: o = fmaf(block_o, block_factor, o * factor).
struct MergeFactors {
  float factor, block_factor;
};

QF_DEVICE MergeFactors merge(RowState& state, const RowState& block) {
  const float max = fmaxf(state.max, block.max);
  const float reference = max == negative_infinity() ? 0.0f : max;
  const MergeFactors f = {exp2_approx(state.max - reference), exp2_approx(block.max - reference)};
  state.sum = fmaf(block.sum, f.block_factor, mul_rn(state.sum, f.factor));
  state.max = max;
  return f;
}

// 1 / l, or 0 for a row without keys.
QF_DEVICE float inverse_sum(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

// Scores of keys outside [begin, end) become -inf. `first`: number of the block's first key. Element i of s[n] is row
// g + 8 (i / 2), key 8 n + 2 t + i % 2 with g = lane / 4, t = lane % 4.
QF_DEVICE void mask_block(float (&s)[8][4], int32_t first, const KeyRange (&range)[2]) {
  const int32_t column = first + static_cast<int32_t>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t key = column + n * 8 + i % 2;
      if (key < range[i / 2].begin || key >= range[i / 2].end) s[n][i] = negative_infinity();
    }
  }
}

// s = s * scale + bias. `row`: the warp's first row in its sequence. Keys that a row does not see are masked
// afterwards.
QF_DEVICE void add_bias(float (&s)[8][4], const AttentionProblem& p, const Sequence& sequence, int32_t kv_head,
                        int32_t row, int32_t first) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, column = first + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const BiasRow bias = bias_row(p, sequence, kv_head, row + lane / 4 + 8 * half);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& score = s[n][2 * half + i];
        score = fmaf(score, p.scale, bias_at(p, bias, column + n * 8 + i));
      }
    }
  }
}

// Turns the scores of a block into weights packed as the A operand of p·v, and gives the block's maximum and sum.
template <class T>
QF_DEVICE void softmax_block(const float (&s)[8][4], float scale_log2, uint32_t (&p)[4][4], RowState (&block)[2]) {
  float weights[8][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float max = s[0][2 * half];
#pragma unroll
    for (int n = 0; n < 8; ++n) max = fmaxf(max, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
    block[half].max = mul_rn(max, scale_log2);
    const float shift = max == negative_infinity() ? 0.0f : block[half].max;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float weight = exp2_approx(fmaf(s[n][2 * half + i], scale_log2, -shift));
        weights[n][2 * half + i] = weight;
        sum += weight;
      }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    block[half].sum = sum + __shfl_xor_sync(0xffffffffu, sum, 2);
  }
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    p[pair][0] = pack2<T>(weights[2 * pair][0], weights[2 * pair][1]);
    p[pair][1] = pack2<T>(weights[2 * pair][2], weights[2 * pair][3]);
    p[pair][2] = pack2<T>(weights[2 * pair + 1][0], weights[2 * pair + 1][1]);
    p[pair][3] = pack2<T>(weights[2 * pair + 1][2], weights[2 * pair + 1][3]);
  }
}

}  // namespace qformer::cuda
