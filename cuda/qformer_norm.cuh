// The last step of the Q-Former's cross-attention block: layer norm of one row by one warp, and the rows that only pass
// through. Mean and variance in two passes over the row, which lies in L1 or L2; a lane takes columns lane, lane + 32,
// ….
#pragma once

#include "prims/global.h"
#include "prims/math.h"
#include "qformer_block.h"

namespace qformer::cuda {

// Row of x and y where row r of the intermediate tensors belongs.
QF_DEVICE int64_t outer_row(const QFormerBlock& block, int32_t row) {
  const int32_t queries = static_cast<int32_t>(block.args.num_query);
  return static_cast<int64_t>(row / queries) * block.args.rows_per_batch + row % queries;
}

template <class T>
QF_DEVICE void normalize_row(const QFormerBlock& block, int32_t row) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, hidden = block.hidden;
  const Global<float> x = Global<float>(block.sum) + static_cast<int64_t>(row) * hidden;
  const Global<const float> weight(block.args.norm_weight), bias(block.args.norm_bias);
  const Global<T> y = Global<T>(static_cast<T*>(block.args.y)) + outer_row(block, row) * hidden;
  float total = 0.0f;
  for (int32_t i = lane; i < hidden; i += 32) total += x.load(i);
  const float mean = warp_sum(total) / static_cast<float>(hidden);
  float squares = 0.0f;
  for (int32_t i = lane; i < hidden; i += 32) {
    const float distance = x.load(i) - mean;
    squares = fmaf(distance, distance, squares);
  }
  const float variance = warp_sum(squares) / static_cast<float>(hidden);
  const float inverse = 1.0f / sqrtf(variance + block.args.norm_eps);
  for (int32_t i = lane; i < hidden; i += 32) {
    y.store(i, from_float<T>(fmaf(mul_rn(x.load(i) - mean, inverse), weight.load(i), bias.load(i))));
  }
}

// Rows past num_query of every sequence, copied by CTAs number, number + ctas, ….
template <class T>
QF_DEVICE void copy_passing_rows(const QFormerBlock& block, int32_t number, int32_t ctas) {
  const QfQFormerCrossAttention& a = block.args;
  const Global<const T> x(static_cast<const T*>(a.x));
  const Global<T> y(static_cast<T*>(a.y));
  const int32_t passing = static_cast<int32_t>(a.rows_per_batch - a.num_query);
  const int64_t count = a.batch * passing * block.hidden;
  const int64_t threads = static_cast<int64_t>(ctas) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(number) * blockDim.x + threadIdx.x; i < count; i += threads) {
    const int64_t row = i / block.hidden, column = i % block.hidden;
    const int64_t at = (row / passing * a.rows_per_batch + a.num_query + row % passing) * block.hidden + column;
    y.store(at, x.load(at));
  }
}

}  // namespace qformer::cuda
