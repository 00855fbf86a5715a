// Attention on plain cores in f32, for everything the tensor-core kernels do not take: f32 activations, a cache of
// another dtype than the activations, any head_dim, any alignment, a scale that is not positive.
//
// A CTA owns 16 rows of one sequence and kv head, 8 lanes each, and walks the keys in steps of 32 at absolute multiples
// of 32 with the running-maximum softmax. Every score is one chain of fmas along the head and every output element one
// along the keys, so a row's bits depend on nothing but the row: prefill, chunks and decode agree. Lane c of a row has
// keys c, c + 8, … and columns 4c … 4c + 3 of every 32. Heads of more than 128 columns take one CTA per 128 of them,
// each forming the scores anew. Traffic: K and V once per 16 rows.
#pragma once

#include "attention_problem.cuh"
#include "attention_softmax.cuh"
#include "prims/shared.h"

namespace qformer::cuda {

constexpr int kPlainRows = 16, kPlainThreads = 8 * kPlainRows;
constexpr int kPlainKeys = 32;      // keys per step
constexpr int kPlainColumns = 128;  // columns of o per CTA
constexpr int kPlainChunk = 64;     // columns of k at a time
constexpr int kPlainKeyPitch = kPlainChunk + 4, kPlainValuePitch = kPlainColumns + 4,
              kPlainWeightPitch = kPlainKeys + 1;

inline int64_t plain_query_pitch(int64_t head_dim) {
  return (head_dim + kPlainChunk - 1) / kPlainChunk * kPlainChunk + 4;
}
inline size_t plain_shared_bytes(int64_t head_dim) {
  return shared_bytes<float>(static_cast<size_t>(kPlainRows * plain_query_pitch(head_dim))) +
         shared_bytes<float>(kPlainKeys * kPlainKeyPitch) + shared_bytes<float>(kPlainKeys * kPlainValuePitch) +
         shared_bytes<float>(kPlainRows * kPlainWeightPitch) + shared_bytes<int32_t>(kPlainKeys);
}

struct PlainMemory {
  Shared<float> q, k, v, weights;
  Shared<int32_t> rows;  // where the keys of this step lie, in rows of k; -1: nowhere
  int32_t q_pitch;
};

// Columns [first, first + columns) of this step's keys, widened; zeros beyond head_dim and for absent keys.
template <class C>
QF_DEVICE void load_plain(const AttentionProblem& p, const PlainMemory& m, const void* source, int64_t stride,
                          int32_t kv_head, int32_t first, int32_t columns, Shared<float> dst, int32_t pitch) {
  const Global<const C> from =
      Global<const C>(static_cast<const C*>(source)) + static_cast<int64_t>(kv_head) * p.head_dim;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kPlainKeys * columns; i += kPlainThreads) {
    const int32_t key = i / columns, column = i % columns, row = m.rows.load(key);
    const bool valid = row >= 0 && first + column < p.head_dim;
    dst.store(key * pitch + column, valid ? to_float(from.load(row * stride + first + column)) : 0.0f);
  }
}

template <class T>
QF_DEVICE void load_plain_queries(const AttentionProblem& p, const PlainMemory& m, const RowTile& tile,
                                  int32_t kv_head) {
  const Global<const T> from(static_cast<const T*>(p.q));
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kPlainRows * m.q_pitch; i += kPlainThreads) {
    const int32_t r = tile.first + i / m.q_pitch, column = i % m.q_pitch;
    float value = 0.0f;
    if (r < tile.rows && column < p.head_dim) {
      const int64_t token = tile.sequence.q_begin + r / p.group, head = kv_head * p.group + r % p.group;
      value = to_float(from.load(token * p.q_stride + head * p.head_dim + column));
    }
    m.q.store(i, value);
  }
}

// One step's scores of this lane: keys lane + 8 n.
template <class C>
QF_DEVICE void score_plain(const AttentionProblem& p, const PlainMemory& m, int32_t kv_head, bool active, int32_t row,
                           int32_t lane, float (&s)[4]) {
  for (int32_t first = 0; first < p.head_dim; first += kPlainChunk) {
    load_plain<C>(p, m, p.k, p.k_stride, kv_head, first, kPlainChunk, m.k, kPlainKeyPitch);
    __syncthreads();
    const int32_t left = p.head_dim - first, columns = left < kPlainChunk ? left : kPlainChunk;
    for (int32_t d = 0; active && d < columns; d += 4) {
      const Vec<float, 4> q = m.q.template load_vec<4>(row * m.q_pitch + first + d);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const Vec<float, 4> k = m.k.template load_vec<4>((lane + 8 * n) * kPlainKeyPitch + d);
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n] = fmaf(q[i], k[i], s[n]);
      }
    }
    __syncthreads();
  }
}

QF_DEVICE float max_of_row(float x) {
#pragma unroll
  for (int step = 1; step < 8; step *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
QF_DEVICE float sum_of_row(float x) {
#pragma unroll
  for (int step = 1; step < 8; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

template <class T, class C>
QF_DEVICE void attend_plain(const AttentionProblem& p, const RowTile& tile, int32_t kv_head, int32_t first_column,
                            const PlainMemory& m) {
  const Sequence& sequence = tile.sequence;
  const int32_t thread = static_cast<int32_t>(threadIdx.x), row = thread / 8, lane = thread % 8;
  const int32_t r = tile.first + row;
  const bool active = r < tile.rows;
  const int32_t last_row = tile.first + kPlainRows < tile.rows ? tile.first + kPlainRows - 1 : tile.rows - 1;
  const int32_t begin_key = visible_keys(p, sequence, tile.first / p.group).begin;
  const int32_t end_key = visible_keys(p, sequence, last_row / p.group).end;
  const KeyRange range = active ? visible_keys(p, sequence, r / p.group) : KeyRange{0, 0};
  const BiasRow bias = bias_row(p, sequence, kv_head, r);
  load_plain_queries<T>(p, m, tile, kv_head);

  RowState state = {negative_infinity(), 0.0f};
  float o[kPlainColumns / 32][4] = {};
  const int32_t columns = p.head_dim - first_column < kPlainColumns ? p.head_dim - first_column : kPlainColumns;
  for (int32_t first = begin_key / kPlainKeys * kPlainKeys; first < end_key; first += kPlainKeys) {
    if (thread < kPlainKeys) {
      const int32_t key = first + thread;
      const int32_t at = key >= end_key             ? -1
                         : p.block_table != nullptr ? slot_of(p, sequence, key)
                                                    : sequence.k_begin + key;
      m.rows.store(thread, at);
    }
    __syncthreads();
    float s[4] = {};
    score_plain<C>(p, m, kv_head, active, row, lane, s);
    load_plain<C>(p, m, p.v, p.v_stride, kv_head, first_column, kPlainColumns, m.v, kPlainValuePitch);

    float max = negative_infinity();
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int32_t key = first + lane + 8 * n;
      const bool seen = key >= range.begin && key < range.end;
      s[n] = !seen               ? negative_infinity()
             : p.bias == nullptr ? mul_rn(s[n], p.scale)
                                 : fmaf(s[n], p.scale, bias_at(p, bias, key));
      max = fmaxf(max, s[n]);
    }
    max = fmaxf(state.max, max_of_row(max));
    const float shift = max == negative_infinity() ? 0.0f : max;
    const float factor = expf(state.max - shift);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float weight = expf(s[n] - shift);
      m.weights.store(row * kPlainWeightPitch + lane + 8 * n, weight);
      sum += weight;
    }
    state.sum = fmaf(state.sum, factor, sum_of_row(sum));
    state.max = max;
    __syncthreads();  // V and the weights are there

    const int32_t keys = end_key - first < kPlainKeys ? end_key - first : kPlainKeys;
#pragma unroll
    for (int n = 0; n < kPlainColumns / 32; ++n) {
      if (!active || n * 32 + lane * 4 >= columns) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] = mul_rn(o[n][i], factor);
      for (int32_t key = 0; key < keys; ++key) {
        const float weight = m.weights.load(row * kPlainWeightPitch + key);
        const Vec<float, 4> v = m.v.template load_vec<4>(key * kPlainValuePitch + n * 32 + lane * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] = fmaf(weight, v[i], o[n][i]);
      }
    }
    __syncthreads();  // everybody is done with this step's memory
  }
  if (!active) return;
  const float inverse = inverse_sum(state.sum);
  const int64_t head = kv_head * p.group + r % p.group;
  const Global<T> out = Global<T>(static_cast<T*>(p.o)) +
                        ((static_cast<int64_t>(sequence.q_begin) + r / p.group) * p.heads + head) * p.head_dim;
#pragma unroll
  for (int n = 0; n < kPlainColumns / 32; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t column = n * 32 + lane * 4 + i;
      if (column < columns) out.store(first_column + column, from_float<T>(o[n][i] * inverse));
    }
  }
}

// T: activations, C: k and v. Grid: row tiles, kv heads, pieces of 128 columns.
template <class T, class C>
QF_KERNEL void QF_LAUNCH_BOUNDS(kPlainThreads, 1) attention_plain_kernel(AttentionProblem p) {
  SharedMemory shared;
  PlainMemory m;
  m.q_pitch = (p.head_dim + kPlainChunk - 1) / kPlainChunk * kPlainChunk + 4;
  m.q = shared.take<float>(kPlainRows * m.q_pitch);
  m.k = shared.take<float>(kPlainKeys * kPlainKeyPitch);
  m.v = shared.take<float>(kPlainKeys * kPlainValuePitch);
  m.weights = shared.take<float>(kPlainRows * kPlainWeightPitch);
  m.rows = shared.take<int32_t>(kPlainKeys);
  if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) check_sequences(p);
  const RowTile tile = find_row_tile(p, static_cast<int32_t>(blockIdx.x), kPlainRows, 1);
  if (tile.rows == 0) return;
  attend_plain<T, C>(p, tile, static_cast<int32_t>(blockIdx.y), static_cast<int32_t>(blockIdx.z) * kPlainColumns, m);
}

}  // namespace qformer::cuda
