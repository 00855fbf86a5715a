// What every attention kernel of this backend is given, and how it finds its part: sequences of different length are
// packed, their offsets lie in device memory, so grids are sized from what the host knows (tokens, batch) and a CTA
// looks up here which sequence and which rows it serves; a CTA without work leaves at once.
//
// A "row" is one (query token, query head) pair that shares a kv head: row r of a sequence is token r / group, head
// kv_head * group + r % group. Packing the group into rows makes prefill, decode and grouped queries one case.
#pragma once

#include "backend/backend.h"
#include "prims/cuda.h"
#include "prims/fault.h"
#include "prims/global.h"

namespace qformer::cuda {

// Keys per step of the softmax. Steps start at absolute multiples of it, in every kernel: a row's arithmetic must not
// depend on which kernel runs it (see attention_softmax.cuh).
constexpr int32_t kKeyBlock = 64;

struct AttentionProblem {
  const void* q;                // token 0, head 0; tokens q_stride apart
  const void* k;                // key 0, kv head 0; keys k_stride apart (paged: slots k_stride apart)
  const void* v;                // same with v_stride
  const float* bias;            // [heads, bias_span] or null
  void* o;                      // [tokens_q, heads, head_dim] dense
  const int32_t* cu_seqlens_q;  // [batch + 1]; null: every sequence has rows_per_batch tokens, of which len_q attend
  const int32_t* cu_seqlens_k;  // [batch + 1]; null where paged or uniform
  const int32_t* block_table;   // [batch, max_blocks]; null: keys are dense
  const int32_t* context_lens;  // [batch]
  int32_t* fault;
  int64_t q_stride, k_stride, v_stride;
  int32_t bias_span, bias_origin;
  int32_t batch, tokens_q, tokens_k;
  int32_t heads, kv_heads, group, head_dim;
  int32_t blocks, block_size, max_blocks;
  int32_t rows_per_batch, uniform_q, uniform_k;
  float scale;
  int32_t mask, num_query;
};

// One sequence of the batch, in tokens. len_q is 0 where it has no new tokens or its description is unusable.
struct Sequence {
  int32_t index;
  int32_t q_begin, len_q;
  int32_t k_begin, len_k;
};

// The offsets a CTA may trust: lengths are never negative and never leave [0, tokens].
QF_DEVICE Sequence sequence_at(const AttentionProblem& p, int32_t b) {
  Sequence s = {b, 0, 0, 0, 0};
  if (p.cu_seqlens_q == nullptr) {
    s.q_begin = b * p.rows_per_batch;
    s.len_q = p.uniform_q;
    s.k_begin = b * p.uniform_k;
    s.len_k = p.uniform_k;
    return s;
  }
  const Global<const int32_t> cu_q(p.cu_seqlens_q);
  const int32_t q_begin = cu_q.load(b), q_end = cu_q.load(b + 1);
  if (q_begin < 0 || q_end > p.tokens_q || q_begin >= q_end) return s;
  s.q_begin = q_begin;
  if (p.context_lens != nullptr) {
    s.len_k = Global<const int32_t>(p.context_lens).load(b);
    if (s.len_k < 0 || s.len_k > static_cast<int64_t>(p.max_blocks) * p.block_size) return s;
  } else {
    const Global<const int32_t> cu_k(p.cu_seqlens_k);
    s.k_begin = cu_k.load(b);
    s.len_k = cu_k.load(b + 1) - s.k_begin;
    if (s.k_begin < 0 || s.len_k < 0 || s.k_begin + s.len_k > p.tokens_k) return s;
  }
  s.len_q = q_end - q_begin;
  return s;
}

// Reports what makes the offsets or contexts unusable. Run by the threads of one CTA of the grid.
QF_DEVICE void check_sequences(const AttentionProblem& p) {
  if (p.cu_seqlens_q == nullptr) return;
  const Global<const int32_t> cu_q(p.cu_seqlens_q);
  for (int32_t b = static_cast<int32_t>(threadIdx.x); b < p.batch; b += static_cast<int32_t>(blockDim.x)) {
    const int32_t begin = cu_q.load(b), end = cu_q.load(b + 1);
    bool good = begin <= end && begin >= 0 && (b > 0 || begin == 0) && (b + 1 < p.batch || end == p.tokens_q);
    if (p.context_lens == nullptr) {
      const Global<const int32_t> cu_k(p.cu_seqlens_k);
      const int32_t k_begin = cu_k.load(b), k_end = cu_k.load(b + 1);
      good = good && k_begin <= k_end && (b > 0 || k_begin == 0) && (b + 1 < p.batch || k_end == p.tokens_k);
    } else if (begin < end) {
      const int32_t len_k = Global<const int32_t>(p.context_lens).load(b);
      good = good && len_k >= 0 && len_k <= static_cast<int64_t>(p.max_blocks) * p.block_size;
    }
    if (!good) report_fault(p.fault, kFaultBadLength);
  }
}

// Rows [first, first + 16 …) of one sequence; len_q == 0 where the CTA has nothing to do.
struct RowTile {
  Sequence sequence;
  int32_t first, rows;  // first row of the tile, rows of the whole sequence
};

// Finds tile number `tile` when sequences with at least `min_tokens` new tokens are cut into tiles of tile_rows rows,
// one after the other. All lanes of a warp call it and get the same answer.
QF_DEVICE RowTile find_row_tile(const AttentionProblem& p, int32_t tile, int32_t tile_rows, int32_t min_tokens) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  for (int32_t base = 0; base < p.batch; base += 32) {
    const int32_t b = base + lane;
    const int32_t len_q = b < p.batch ? sequence_at(p, b).len_q : 0;
    const int32_t tiles = len_q < min_tokens ? 0 : (len_q * p.group + tile_rows - 1) / tile_rows;
    int32_t end = tiles;  // inclusive prefix sum over the lanes
    for (int32_t step = 1; step < 32; step *= 2) {
      const int32_t other = __shfl_up_sync(0xffffffffu, end, step);
      if (lane >= step) end += other;
    }
    const uint32_t behind = __ballot_sync(0xffffffffu, tile < end);
    if (behind != 0) {
      int32_t owner = 0;
      while ((behind >> owner & 1u) == 0) ++owner;
      const int32_t begin = __shfl_sync(0xffffffffu, end - tiles, owner);
      RowTile found;
      found.sequence = sequence_at(p, base + owner);
      found.first = (tile - begin) * tile_rows;
      found.rows = found.sequence.len_q * p.group;
      return found;
    }
    tile -= __shfl_sync(0xffffffffu, end, 31);
  }
  return {{0, 0, 0, 0, 0}, 0, 0};
}

// Most tiles that find_row_tile can number for `tokens` rows in `batch` sequences.
inline int64_t row_tile_bound(int64_t rows, int64_t batch, int64_t tile_rows) {
  const int64_t sequences = batch < rows ? batch : rows;
  return rows / tile_rows + sequences;
}

// Keys [begin, end) of its sequence that a row sees. Over the rows of a sequence neither bound ever falls, which is
// what lets a tile take its range from its first and last row.
struct KeyRange {
  int32_t begin, end;
};

QF_DEVICE KeyRange visible_keys(const AttentionProblem& p, const Sequence& s, int32_t token) {
  const int32_t queries = p.num_query < s.len_k ? p.num_query : s.len_k;
  int32_t end = s.len_k;
  switch (p.mask) {
    case QF_MASK_CAUSAL:
      end = token + s.len_k - s.len_q + 1;
      break;
    case QF_MASK_ITC:
      if (token >= p.num_query) return {queries, s.len_k};
      return {0, queries};
    case QF_MASK_ITG:
      end = (token > p.num_query - 1 ? token : p.num_query - 1) + 1;
      break;
    default:
      break;
  }
  end = end < 0 ? 0 : end < s.len_k ? end : s.len_k;
  return {0, end};
}

// Where one row finds its bias: key j adds table[clamp(j + shift, 0, bias_span - 1)], which is always in the table.
struct BiasRow {
  Global<const float> table;
  int32_t shift;
};

// Of row `row` of a sequence; a row past the last one gives the last one's.
QF_DEVICE BiasRow bias_row(const AttentionProblem& p, const Sequence& s, int32_t kv_head, int32_t row) {
  const int32_t last = s.len_q * p.group - 1, own = row < last ? row : last;
  const int64_t head = kv_head * p.group + own % p.group;
  return {Global<const float>(p.bias) + head * p.bias_span, p.bias_origin - (own / p.group + s.len_k - s.len_q)};
}

QF_DEVICE float bias_at(const AttentionProblem& p, const BiasRow& row, int32_t key) {
  const int32_t at = key + row.shift, last = p.bias_span - 1;
  return row.table.load(at < 0 ? 0 : at < last ? at : last);
}

// The cache slot of a key, or -1 where the block table points outside the cache (reported).
QF_DEVICE int32_t slot_of(const AttentionProblem& p, const Sequence& s, int32_t key) {
  const int64_t entry = static_cast<int64_t>(s.index) * p.max_blocks + key / p.block_size;
  const int32_t block = Global<const int32_t>(p.block_table).load(entry);
  if (block >= 0 && block < p.blocks) return block * p.block_size + key % p.block_size;
  report_fault(p.fault, kFaultBlockOutOfRange);
  return -1;
}

}  // namespace qformer::cuda
