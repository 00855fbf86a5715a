// Per-ISA part of attention: one job (see attention_job.h) by online softmax over blocks of 64 keys.
//
// For each block: pack keys and values once, then for every tile of rows S = (scale q) Kᵀ + bias, the running maximum
// m, p = exp(S - m), l = l * exp(m_old - m) + sum(p), O = O * exp(m_old - m) + p V; at the end O / l. Scores never
// leave L1. A row does the same arithmetic in the same order whatever its neighbours: blocks start at absolute
// multiples of 64, masked keys are -inf in S and skipped in p V, and a block a row does not see multiplies by 1 and
// adds 0. Traffic: K and V once per job, q and o once. Source: Milakov and Gimelshein 2018; Dao et al. 2022
// (FlashAttention).
#pragma once

#include "attention_job.h"
#include "attention_pack.h"
#include "attention_tiles.h"
#include "kernels.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

constexpr float kNegativeInfinity = -__builtin_inff();

// Working memory of a job.
struct AttentionState {
  float* keys;    // [head_dim, kKeyBlock]
  float* values;  // [kKeyBlock, padded]
  float* q;       // [rows, padded], scaled
  float* o;       // [rows, padded]
  float* max;     // [rows]
  float* sum;     // [rows]
  int64_t rows, padded;
};

inline AttentionState make_state(const AttentionJob& job, float* workspace) {
  AttentionState s;
  s.rows = job.tokens * job.group;
  s.padded = (job.head_dim + 15) / 16 * 16;
  s.keys = workspace;
  s.values = s.keys + s.padded * kKeyBlock;
  s.q = s.values + s.padded * kKeyBlock;
  s.o = s.q + s.rows * s.padded;
  s.max = s.o + s.rows * s.padded;
  s.sum = s.max + s.rows;
  return s;
}

inline void load_queries(const AttentionJob& job, const AttentionState& s) {
  const Vf scale = broadcast(job.scale);
  for (int64_t r = 0; r < s.rows; ++r) {
    const float* q = job.q + r / job.group * job.q_stride + r % job.group * job.head_dim;
    for (int64_t d = 0; d < s.padded; d += kLanes) {
      const int64_t width = job.head_dim - d;
      store(s.q + r * s.padded + d, width > 0 ? load_row<QF_F32>(q, d, width) * scale : zero());
      store(s.o + r * s.padded + d, zero());
    }
    s.max[r] = kNegativeInfinity;
    s.sum[r] = 0.0f;
  }
}

inline void store_outputs(const AttentionJob& job, const AttentionState& s) {
  for (int64_t r = 0; r < s.rows; ++r) {
    float* o = job.o + r / job.group * job.o_stride + r % job.group * job.head_dim;
    const Vf inverse = broadcast(s.sum[r] == 0.0f ? 0.0f : 1.0f / s.sum[r]);
    for (int64_t d = 0; d < job.head_dim; d += kLanes) {
      const int64_t width = job.head_dim - d < kLanes ? job.head_dim - d : kLanes;
      store_partial(o + d, load(s.o + r * s.padded + d) * inverse, width);
    }
  }
}

// Turns one row of scores into weights and rescales what the row has gathered so far. The row sees keys [begin, end) of
// the block; vectors from `vectors` on were not computed and count as unseen.
inline void softmax_step(const AttentionState& s, int64_t r, float* scores, int64_t begin, int64_t end,
                         int64_t vectors) {
  for (int64_t j = 0; j < begin; ++j) scores[j] = kNegativeInfinity;
  for (int64_t j = end; j < vectors * kLanes; ++j) scores[j] = kNegativeInfinity;
  Vf best = load(scores);
  for (int64_t n = 1; n < vectors; ++n) best = vmax(best, load(scores + n * kLanes));
  const float old_max = s.max[r];
  const float block_max = reduce_max(best);
  const float max = old_max < block_max ? block_max : old_max;
  const float shift = max == kNegativeInfinity ? 0.0f : max;
  const Vf offset = broadcast(shift);
  Vf total = zero();
  for (int64_t n = 0; n < vectors; ++n) {
    const Vf weight = exp(load(scores + n * kLanes) - offset);
    store(scores + n * kLanes, weight);
    total = total + weight;
  }
  s.max[r] = max;
  if (max == old_max) {
    s.sum[r] += reduce_add(total);
    return;
  }
  float lanes[kLanes];
  store(lanes, exp(broadcast(old_max - shift)));
  s.sum[r] = s.sum[r] * lanes[0] + reduce_add(total);
  const Vf factor = broadcast(lanes[0]);
  float* o = s.o + r * s.padded;
  for (int64_t d = 0; d < s.padded; d += kLanes) store(o + d, load(o + d) * factor);
}

// Where rows [row, row + R) meet one block of keys.
struct BlockView {
  int64_t first, count;  // keys of the block present in the context
  int64_t seen_from;     // index in the block of the job's first key
};

// Adds the bias of keys [0, end) of a block. Within the table they are neighbours; beyond it the last value counts.
inline void add_bias(const AttentionJob& job, int64_t r, const BlockView& block, int64_t end, float* scores) {
  const float* bias = job.bias + r % job.group * job.bias_span;
  const int64_t first = block.first - (job.position + r / job.group) + job.bias_origin;
  const int64_t last = job.bias_span - 1;
  if (first < 0 || first + end > job.bias_span) {
    for (int64_t j = 0; j < end; ++j) {
      const int64_t at = first + j;
      scores[j] += bias[at < 0 ? 0 : at < last ? at : last];
    }
    return;
  }
  for (int64_t j = 0; j < end; j += kLanes) {
    const int64_t count = end - j < kLanes ? end - j : kLanes;
    store(scores + j, load(scores + j) + load_partial(bias + first + j, count));
  }
}

template <int R>
inline void attend_tile(const AttentionJob& job, const AttentionState& s, int64_t row, const BlockView& block) {
  int64_t seen_to[R];
  int64_t widest = 0;
  for (int r = 0; r < R; ++r) {
    const int64_t limit = job.key_limits[(row + r) / job.group] - block.first;
    seen_to[r] = limit < block.seen_from ? block.seen_from : limit < block.count ? limit : block.count;
    widest = seen_to[r];
  }
  if (widest <= block.seen_from) return;
  const int64_t vectors = (widest + kLanes - 1) / kLanes;
  alignas(64) float scores[R * kKeyBlock];
  const float* q = s.q + row * s.padded;
  score_rows<R>(q, s.padded, s.keys, job.head_dim, vectors, scores);
  if (job.bias != nullptr) {
    for (int r = 0; r < R; ++r) add_bias(job, row + r, block, seen_to[r], scores + r * kKeyBlock);
  }
  for (int r = 0; r < R; ++r) softmax_step(s, row + r, scores + r * kKeyBlock, block.seen_from, seen_to[r], vectors);
  // Limits do not fall from row to row: all rows share the first one's keys, the rest goes row by row.
  float* o = s.o + row * s.padded;
  value_rows<R>(scores, s.values, s.padded, block.seen_from, seen_to[0], o);
  for (int r = 1; r < R; ++r) {
    value_rows<1>(scores + r * kKeyBlock, s.values, s.padded, seen_to[0], seen_to[r], o + r * s.padded);
  }
}

inline void attend_rows(const AttentionJob& job, const AttentionState& s, const BlockView& block) {
  int64_t row = 0;
  for (; row + kTileRows <= s.rows; row += kTileRows) attend_tile<kTileRows>(job, s, row, block);
  switch (s.rows - row) {
    case 5:
      return attend_tile<5>(job, s, row, block);
    case 4:
      return attend_tile<4>(job, s, row, block);
    case 3:
      return attend_tile<3>(job, s, row, block);
    case 2:
      return attend_tile<2>(job, s, row, block);
    case 1:
      return attend_tile<1>(job, s, row, block);
    default:
      return;
  }
}

template <int32_t Dtype>
inline void attend(const AttentionJob& job, float* workspace) {
  const AttentionState s = make_state(job, workspace);
  load_queries(job, s);
  const int64_t end = job.key_limits[job.tokens - 1];
  for (int64_t first = job.first_key / kKeyBlock * kKeyBlock; first < end; first += kKeyBlock) {
    BlockView block;
    block.first = first;
    block.count = end - first < kKeyBlock ? end - first : kKeyBlock;
    block.seen_from = job.first_key > first ? job.first_key - first : 0;
    pack_keys<Dtype>(job, first, block.count, s.keys);
    pack_values<Dtype>(job, first, block.count, s.padded, s.values);
    attend_rows(job, s, block);
  }
  store_outputs(job, s);
}

inline void attention(const AttentionJob& job, float* workspace) {
  switch (job.dtype) {
    case QF_F16:
      return attend<QF_F16>(job, workspace);
    case QF_BF16:
      return attend<QF_BF16>(job, workspace);
    default:
      return attend<QF_F32>(job, workspace);
  }
}

constexpr AttentionKernels kAttentionKernels = {&attention, nullptr};

}  // namespace qformer::cpu::QF_ISA
