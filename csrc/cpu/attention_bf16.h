// Attention with bf16 products, on the matrix unit (AMX) or in dot products: one job (attention_job.h) by online
// softmax over blocks of 512 keys.
//
// For each block: pack keys and values as B tiles once, then for every 16 rows S = (scale q) Kᵀ, p = exp(S - m) with
// the largest m of the row so far, O = O * exp(m_old - m) + p V; at the end O / sum(p). q, K, V and p are rounded to
// bf16, S, O and the sum of p are f32. A row's bits depend on its own keys only: blocks start at absolute multiples of
// 512, steps of 32 keys at multiples of 32, and keys a row does not see add 0 * v. For that, values that are not finite
// count as zero; rows that see one are left to the f32 kernel.
//
// Traffic: K and V once per job, q and o once; a block of packed K and V lies in L2, the scores of 16 rows in L1. In a
// vision tower (257 keys, 88 dims) the softmax takes a third of the time with AMX. Sources as in attention_kernels.h.
#pragma once

#include <immintrin.h>

#include "attention_pack.h"
#if defined(QF_ISA_BF16_DOT)
#include "attention_tiles_dot.h"
#else
#include "attention_tiles_amx.h"
#endif
#include "kernels.h"
#include "simd_math.h"

namespace qformer::cpu::QF_ISA {

constexpr float kUnseen = -__builtin_inff();

// Working memory of a job, in tiles of 1 KiB.
struct TileAttention {
  char* keys;     // [key tile][step of 32 dims]: B tiles
  char* values;   // [step of 32 keys][tile of 16 dims]: B tiles
  char* q;        // [row tile][step of 32 dims]: A tiles, scaled
  char* weights;  // [step of 32 keys]: A tiles of p, of one row tile
  float* scores;  // [key tile]: C tiles, of one row tile
  float* o;       // [row tile][tile of 16 dims]: C tiles
  float *max, *sum;
  int64_t rows, row_tiles, dim_steps, dim_tiles;
};

inline TileAttention make_tile_state(const AttentionJob& job, float* workspace) {
  TileAttention s;
  s.rows = job.tokens * job.group;
  s.row_tiles = (s.rows + 15) / 16;
  s.dim_steps = (job.head_dim + 31) / 32;
  s.dim_tiles = (job.head_dim + 15) / 16;
  s.keys = reinterpret_cast<char*>(workspace);
  s.values = s.keys + kTileKeyBlock / 16 * s.dim_steps * kTileBytes;
  s.q = s.values + kTileKeyBlock / 32 * s.dim_tiles * kTileBytes;
  s.weights = s.q + s.row_tiles * s.dim_steps * kTileBytes;
  s.scores = reinterpret_cast<float*>(s.weights + kTileKeyBlock / 32 * kTileBytes);
  s.o = s.scores + kTileKeyBlock / 16 * kTileFloats;
  s.max = s.o + s.row_tiles * s.dim_tiles * kTileFloats;
  s.sum = s.max + s.row_tiles * 16;
  return s;
}

inline void load_tile_queries(const AttentionJob& job, const TileAttention& s) {
  const Vf scale = broadcast(job.scale);
  for (int64_t r = 0; r < s.row_tiles * 16; r++) {
    const float* q = job.q + r / job.group * job.q_stride + r % job.group * job.head_dim;
    char* to = s.q + r / 16 * s.dim_steps * kTileBytes + r % 16 * 64;
    for (int64_t d = 0; d < s.dim_steps * 32; d += 32, to += kTileBytes) {
      const int64_t width = r < s.rows ? job.head_dim - d : 0;
      const Vf low = width > 0 ? load_row<QF_F32>(q, d, width) * scale : zero();
      const Vf high = width > kLanes ? load_row<QF_F32>(q, d + kLanes, width - kLanes) * scale : zero();
      _mm512_store_si512(to, bf16_of(low, high));
    }
    s.max[r] = kUnseen;
    s.sum[r] = 0.0f;
  }
}

inline void store_tile_outputs(const AttentionJob& job, const TileAttention& s) {
  for (int64_t r = 0; r < s.rows; r++) {
    float* o = job.o + r / job.group * job.o_stride + r % job.group * job.head_dim;
    const float* from = s.o + r / 16 * s.dim_tiles * kTileFloats + r % 16 * 16;
    const Vf inverse = broadcast(s.sum[r] == 0.0f ? 0.0f : 1.0f / s.sum[r]);
    for (int64_t d = 0; d < job.head_dim; d += kLanes, from += kTileFloats) {
      store_partial(o + d, load(from) * inverse, smaller(job.head_dim - d, kLanes));
    }
  }
}

// Keys [first, first + count) as tiles of pairs of dims; the last tile is filled up with zeros.
template <int32_t Dtype>
inline void pack_key_tiles(const AttentionJob& job, const TileAttention& s, int64_t first, int64_t count) {
  char* to = s.keys;
  for (int64_t column = 0; column < count; column += 16) {
    const int64_t present = smaller(count - column, 16);
    const void* rows[16];
    for (int64_t i = 0; i < present; i++) rows[i] = key_row<Dtype>(job, job.k, job.k_stride, first + column + i);
    for (int64_t d = 0; d < s.dim_steps * 32; d += 32, to += kTileBytes) {
      const int64_t width = job.head_dim - d;
      Vf tile[16];
      for (int64_t i = 0; i < 16; i++) {
        const Vf low = i < present ? load_row<Dtype>(rows[i], d, width) : zero();
        const Vf high = i < present && width > kLanes ? load_row<Dtype>(rows[i], d + kLanes, width - kLanes) : zero();
        tile[i] = {_mm512_castsi512_ps(bf16_of(low, high))};
      }
      transpose(tile);
      for (int i = 0; i < 16; i++) _mm512_store_ps(reinterpret_cast<float*>(to) + 16 * i, tile[i].v);
    }
  }
}

// Values of keys [first, first + count) as tiles of pairs of keys; zeros up to the next multiple of 32 keys, and where
// a value is not finite. Returns the first key with such a value that the job sees, or kAllFinite.
template <int32_t Dtype>
inline int64_t pack_value_tiles(const AttentionJob& job, const TileAttention& s, int64_t first, int64_t count) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  int64_t not_finite = kAllFinite;
  for (int64_t key = 0; key < (count + 31) / 32 * 32; key += 2) {
    const void* even = key < count ? key_row<Dtype>(job, job.v, job.v_stride, first + key) : nullptr;
    const void* odd = key + 1 < count ? key_row<Dtype>(job, job.v, job.v_stride, first + key + 1) : nullptr;
    __mmask32 spoilt = 0;
    char* to = s.values + key / 32 * s.dim_tiles * kTileBytes + key % 32 / 2 * 64;
    for (int64_t d = 0; d < job.head_dim; d += kLanes, to += kTileBytes) {
      const Vf low = even != nullptr ? load_row<Dtype>(even, d, job.head_dim - d) : zero();
      const Vf high = odd != nullptr ? load_row<Dtype>(odd, d, job.head_dim - d) : zero();
      const __m512i pairs = interleave_halves(bf16_of(low, high));
      const __mmask32 finite = _mm512_cmpneq_epi16_mask(_mm512_and_si512(pairs, exponent), exponent);
      spoilt |= ~finite;
      _mm512_store_si512(to, _mm512_maskz_mov_epi16(finite, pairs));
    }
    if (spoilt != 0) [[unlikely]] {
      constexpr __mmask32 kEven = 0x55555555;
      const int64_t even_key = first + key;
      if ((spoilt & kEven) != 0 && even_key >= job.first_key) not_finite = smaller(not_finite, even_key);
      if ((spoilt & ~kEven) != 0 && even_key + 1 >= job.first_key) not_finite = smaller(not_finite, even_key + 1);
    }
  }
  return not_finite;
}

// The bias of one row on 16 keys.
inline Vf bias_of(const AttentionJob& job, int64_t row, int64_t key) {
  const float* bias = job.bias + row % job.group * job.bias_span;
  const int64_t from = key - (job.position + row / job.group) + job.bias_origin, last = job.bias_span - 1;
  if (from >= 0 && from + kLanes <= job.bias_span) return load(bias + from);
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; i++) lanes[i] = bias[from + i < 0 ? 0 : smaller(from + i, last)];
  return load(lanes);
}

// One row of 16 meets keys [begin, end) of a block: scores become weights, and what the row has gathered is rescaled.
// Steps [first_step, last_step) of 32 keys get weights, 0 for keys out of sight.
inline void weigh_row(const AttentionJob& job, const TileAttention& s, int64_t row, int64_t first, int64_t begin,
                      int64_t end, int64_t first_step, int64_t last_step) {
  float* scores = s.scores + row % 16 * 16;
  const auto seen = [&](int64_t tile) { return lanes_below(end - 16 * tile) & ~lanes_below(begin - 16 * tile); };
  const int64_t first_tile = begin / 16, last_tile = begin < end ? (end + 15) / 16 : first_tile;
  Vf best = broadcast(kUnseen);
  for (int64_t tile = first_tile; tile < last_tile; tile++) {
    Vf score = load(scores + tile * kTileFloats);
    if (job.bias != nullptr) score = score + bias_of(job, row, first + 16 * tile);
    score.v = _mm512_mask_mov_ps(broadcast(kUnseen).v, seen(tile), score.v);
    store(scores + tile * kTileFloats, score);
    best = vmax(best, score);
  }
  const float old_max = s.max[row], block_max = reduce_max(best);
  const float max = old_max < block_max ? block_max : old_max;
  const Vf offset = broadcast(max == kUnseen ? 0.0f : max);
  const auto weight = [&](int64_t tile) {
    return tile < first_tile || tile >= last_tile ? zero() : exp(load(scores + tile * kTileFloats) - offset);
  };
  Vf total = zero();
  char* weights = s.weights + first_step * kTileBytes + row % 16 * 64;
  for (int64_t step = first_step; step < last_step; step++, weights += kTileBytes) {
    const Vf low = weight(2 * step), high = weight(2 * step + 1);
    total = total + low;
    total = total + high;
    _mm512_store_si512(weights, bf16_of(low, high));
  }
  s.max[row] = max;
  float factor = 1.0f;
  if (max != old_max && old_max != kUnseen) {
    float lanes[kLanes];
    store(lanes, exp(broadcast(old_max) - offset));
    factor = lanes[0];
    float* o = s.o + row / 16 * s.dim_tiles * kTileFloats + row % 16 * 16;
    for (int64_t tile = 0; tile < s.dim_tiles; tile++, o += kTileFloats) store(o, load(o) * broadcast(factor));
  }
  s.sum[row] = s.sum[row] * factor + reduce_add(total);
}

// A tile of rows meets the block of `count` keys from `first` on, of which the job sees those from `seen_from` on.
inline void attend_row_tile(const AttentionJob& job, const TileAttention& s, int64_t tile, int64_t first, int64_t count,
                            int64_t seen_from, bool fresh) {
  const int64_t row = 16 * tile, rows = smaller(s.rows - row, 16);
  const auto seen_to = [&](int64_t r) {
    const int64_t limit = job.key_limits[r / job.group] - first;
    return limit < seen_from ? seen_from : smaller(limit, count);
  };
  // Limits do not fall from row to row.
  const int64_t widest = seen_to(row + rows - 1);
  float* o = s.o + tile * s.dim_tiles * kTileFloats;
  if (widest == seen_from && !fresh) return;
  const int64_t first_step = seen_from / 32, last_step = widest > seen_from ? (widest + 31) / 32 : first_step;
  score_tiles({s.q + tile * s.dim_steps * kTileBytes, s.keys, job.head_dim, rows, seen_from / 16, (widest + 15) / 16,
               s.scores});
  for (int64_t r = row; r < row + rows; r++) weigh_row(job, s, r, first, seen_from, seen_to(r), first_step, last_step);
  value_tiles(
      {s.weights, s.values, s.dim_tiles, rows, first_step, widest > seen_from ? widest : 32 * first_step, fresh, o});
}

template <int32_t Dtype>
inline int64_t attend_tiles(const AttentionJob& job, float* workspace) {
  const TileAttention s = make_tile_state(job, workspace);
  load_tile_queries(job, s);
  const int64_t end = job.key_limits[job.tokens - 1];
  int64_t not_finite = kAllFinite;
  bool fresh = true;
  for (int64_t first = job.first_key / kTileKeyBlock * kTileKeyBlock; first < end || fresh; first += kTileKeyBlock) {
    const int64_t count = smaller(end > first ? end - first : 0, kTileKeyBlock);
    const int64_t seen_from = job.first_key > first ? smaller(job.first_key - first, count) : 0;
    pack_key_tiles<Dtype>(job, s, first, count);
    not_finite = smaller(not_finite, pack_value_tiles<Dtype>(job, s, first, count));
    for (int64_t tile = 0; tile < s.row_tiles; tile++) attend_row_tile(job, s, tile, first, count, seen_from, fresh);
    fresh = false;
  }
  store_tile_outputs(job, s);
  return not_finite;
}

inline int64_t bf16_attention(const AttentionJob& job, float* workspace) {
  begin_tiles();
  int64_t not_finite;
  switch (job.dtype) {
    case QF_F16:
      not_finite = attend_tiles<QF_F16>(job, workspace);
      break;
    case QF_BF16:
      not_finite = attend_tiles<QF_BF16>(job, workspace);
      break;
    default:
      not_finite = attend_tiles<QF_F32>(job, workspace);
  }
  end_tiles();
  return not_finite;
}

}  // namespace qformer::cpu::QF_ISA
