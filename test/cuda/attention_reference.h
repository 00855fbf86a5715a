// Attention in double precision, as QfAttention and QfPagedAttention define it: what the kernels are held against.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/backend.h"

namespace qformer::test {

// q: [len_q, heads, head_dim], k and v: [len_k, kv_heads, head_dim], dense.
struct ReferenceProblem {
  int64_t len_q, len_k, heads, kv_heads, head_dim;
  double scale = 1.0;
  int32_t mask = QF_MASK_FULL;
  int64_t num_query = 0;
  const float* bias = nullptr;  // [heads, bias_span], by distance
  int64_t bias_span = 0, bias_origin = 0;
};

inline bool sees(const ReferenceProblem& p, int64_t i, int64_t j) {
  switch (p.mask) {
    case QF_MASK_CAUSAL:
      return j <= i + (p.len_k - p.len_q);
    case QF_MASK_ITC:
      return (i < p.num_query) == (j < p.num_query);
    case QF_MASK_ITG:
      return j <= std::max(i, p.num_query - 1);
    default:
      return true;
  }
}

inline std::vector<double> reference_attention(const ReferenceProblem& p, const float* q, const float* k,
                                               const float* v) {
  std::vector<double> o(static_cast<size_t>(p.len_q * p.heads * p.head_dim), 0.0);
  std::vector<double> weights(static_cast<size_t>(p.len_k));
  for (int64_t i = 0; i < p.len_q; ++i) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t kv = h / (p.heads / p.kv_heads);
      double max = -std::numeric_limits<double>::infinity(), sum = 0.0;
      for (int64_t j = 0; j < p.len_k; ++j) {
        double score = 0.0;
        for (int64_t d = 0; d < p.head_dim; ++d) {
          score +=
              static_cast<double>(q[(i * p.heads + h) * p.head_dim + d]) * k[(j * p.kv_heads + kv) * p.head_dim + d];
        }
        score *= p.scale;
        const int64_t distance = j - (i + p.len_k - p.len_q);
        if (p.bias != nullptr) {
          score += p.bias[h * p.bias_span + std::clamp<int64_t>(distance + p.bias_origin, 0, p.bias_span - 1)];
        }
        weights[static_cast<size_t>(j)] = score;
        if (sees(p, i, j)) max = std::max(max, score);
      }
      for (int64_t j = 0; j < p.len_k; ++j) {
        double& weight = weights[static_cast<size_t>(j)];
        weight = sees(p, i, j) ? std::exp(weight - max) : 0.0;
        sum += weight;
      }
      for (int64_t j = 0; j < p.len_k && sum > 0.0; ++j) {
        for (int64_t d = 0; d < p.head_dim; ++d) {
          o[static_cast<size_t>((i * p.heads + h) * p.head_dim + d)] +=
              weights[static_cast<size_t>(j)] / sum * v[(j * p.kv_heads + kv) * p.head_dim + d];
        }
      }
    }
  }
  return o;
}

// How far a result for values in [-1, 1] may lie from the exact one. 16-bit paths round the weights and the result once
// each, by 2^-12 (f16) or 2^-9 (bf16) of at most 1, and a weight's rounding meets values up to 1; the scores' f32
// rounding and ex2.approx add less than 2^-16. f32: sums of up to some hundred terms below 1.
inline double attention_tolerance(int32_t dtype) {
  if (dtype == QF_F16) return 2 * 0x1p-12 + 0x1p-15;
  if (dtype == QF_BF16) return 2 * 0x1p-9 + 0x1p-12;
  return 4e-6;
}

}  // namespace qformer::test
