// Products of f32 rows with group-quantised weights, which are widened in registers: the weights stream by once, as
// stored. A widened weight is its level times the scale of its group, rounded once, and the order of an element's sum
// is that of linear_dot.h, so the results are those of the f32 products with widened weights, bit for bit; for int4
// with the columns of x and w reordered in blocks (simd.h), which spares the kernel unpacking instructions.
//
// AVX-512, one row of x: 16 int8 weights cost two conversions, a multiplication and an fma, 16 int4 weights a shift, a
// table lookup and an fma on two ports.
#pragma once

#include "kernels.h"
#include "linear_outer.h"
#include "linear_packed.h"

namespace qformer::cpu::QF_ISA {

constexpr int kBlockSteps = static_cast<int>(kQuantBlock) / kLanes;
static_assert(kPanelAlign % kBlockSteps == 0);

// How a block of kQuantBlock columns is stored, and its step `step` of kLanes columns as f32.
struct Int8Block {
  using Scale = Vf;
  static constexpr int64_t kBytes = kQuantBlock;
  static Scale scale(float s) { return broadcast(s); }
  static Vf widen(const uint8_t* block, int step, Scale scale) { return load_i8(block + step * kLanes) * scale; }
};

struct Int4Block {
  using Scale = Int4Scale;
  static constexpr int64_t kBytes = kQuantBlock / 2;
  static Scale scale(float s) { return int4_scale(s); }
  static Vf widen(const uint8_t* block, int step, Scale scale) { return load_int4(block, step, scale); }
};

template <class Block>
inline int64_t quant_row_bytes(const QuantRows& w) {
  return w.k / kQuantBlock * Block::kBytes;
}

template <class Block>
inline QuantRows quant_row(const QuantRows& w, int64_t row) {
  return {w.q + row * quant_row_bytes<Block>(w), w.scales + row * (w.k / w.group), w.k, w.group};
}

// sums[m * ld_sums + n * stride] = x row m · w row n * stride
template <class Block, int M, int N>
void quant_rows_tile(const float* x, int64_t ldx, const QuantRows& w, int64_t stride, float* sums, int64_t ld_sums) {
  const int64_t q_stream = stride * quant_row_bytes<Block>(w), scale_stream = stride * (w.k / w.group);
  const uint8_t* q = w.q;
  const float* scales = w.scales;
  Vf sum[M * N];
#pragma GCC unroll 32
  for (int i = 0; i < M * N; i++) sum[i] = zero();
  for (const float* end = x + w.k; x < end; scales++) {
    typename Block::Scale scale[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) scale[n] = Block::scale(scales[n * scale_stream]);
    for (const float* group_end = x + w.group; x < group_end; x += kQuantBlock, q += Block::kBytes) {
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) __builtin_prefetch(q + n * q_stream + kPrefetchBytes, 0, 2);
#pragma GCC unroll 8
      for (int step = 0; step < kBlockSteps; step++) {
        dot_step<DotF32, M, N>(
            sum, [&](int m) { return load(x + m * ldx + step * kLanes); },
            [&](int n) { return Block::widen(q + n * q_stream, step, scale[n]); });
      }
    }
  }
  reduce_tile<M, N>(sum, sums, ld_sums, stride);
}

// Rows of w that share a tile: as many as leave registers for their scales.
template <int M>
constexpr int quant_columns() {
  if (kRegisters == 32) return M <= 3 ? 6 : M <= 5 ? 4 : 3;
  return M == 1 ? 4 : M <= 3 ? 6 / M : 1;
}

// The rows of a tile lie n / N apart, as in linear_dot.h.
template <class Block, int M>
void quant_rows_all_n(const float* x, int64_t ldx, const QuantRows& w, int64_t n, float* sums, int64_t ld_sums) {
  constexpr int N = quant_columns<M>();
  const int64_t stride = n / N;
  int64_t j = 0;
  for (; j < stride; j++) {
    quant_rows_tile<Block, M, N>(x, ldx, quant_row<Block>(w, j), stride, sums + j, ld_sums);
  }
  for (j = stride * N; j < n; j++) {
    quant_rows_tile<Block, M, 1>(x, ldx, quant_row<Block>(w, j), 1, sums + j, ld_sums);
  }
}

// Widens steps [first, last) of `columns` weight rows into a panel, zeros for the rest of kTileN.
template <class Block>
inline void pack_quant_steps(const QuantRows& w, int64_t columns, int64_t first, int64_t last, float* panel) {
  for (int row = 0; row < kTileN; row++) {
    float* out = panel + row * kLanes;
    if (row >= columns) {
      for (int64_t s = first; s < last; s++, out += kTileN * kLanes) store(out, zero());
      continue;
    }
    const QuantRows source = quant_row<Block>(w, row);
    const int64_t group_steps = w.group / kLanes;
    int64_t s = first;
    while (s < last) {
      const int64_t group = s / group_steps;
      const int64_t end = smaller((group + 1) * group_steps, last);
      const typename Block::Scale scale = Block::scale(source.scales[group]);
      for (const uint8_t* q = source.q + s / kBlockSteps * Block::kBytes; s < end;
           s += kBlockSteps, q += Block::kBytes) {
#pragma GCC unroll 8
        for (int step = 0; step < kBlockSteps; step++, out += kTileN * kLanes) {
          store(out, Block::widen(q, step, scale));
        }
      }
    }
  }
}

// Widens `columns` rows into a panel of linear_outer.h, zeros for the rest.
template <class Block>
void outer_pack_quant(const QuantRows& w, int64_t columns, float* out, int64_t lane_stride) {
  const int64_t row_bytes = quant_row_bytes<Block>(w), row_groups = w.k / w.group;
  for (int64_t half = 0; half < kOuterColumns; half += kLanes) {
    const int64_t count = columns <= half ? 0 : smaller(kLanes, columns - half);
    const QuantRows from = quant_row<Block>(w, half);
    float* to = out + half;
    for (int64_t group = 0; group < row_groups; group++) {
      const uint8_t* q = from.q + group * (w.group / kQuantBlock * Block::kBytes);
      for (int64_t i = 0; i < w.group; i += kQuantBlock, q += Block::kBytes) {
#pragma GCC unroll 8
        for (int step = 0; step < kBlockSteps; step++, to += kOuterColumns) {
          const auto load = [&](int row) {
            return Block::widen(q + row * row_bytes, step, Block::scale(from.scales[row * row_groups + group]));
          };
          Vf tile[kLanes];
          turn_step(count, load, tile);
          store_lanes(tile, kLanes, to, lane_stride);
        }
      }
    }
  }
}

template <class Block>
struct QuantEntries {
  static void rows(const float* x, int64_t ldx, int64_t m, const QuantRows& w, int64_t n, float* sums,
                   int64_t ld_sums) {
    switch (m) {
#define QF_ROWS(M) \
  case M:          \
    return quant_rows_all_n<Block, M>(x, ldx, w, n, sums, ld_sums);
      QF_ROWS(1)
      QF_ROWS(2)
      QF_ROWS(3)
      QF_ROWS(4)
      QF_ROWS(5)
      QF_ROWS(6)
      QF_ROWS(7)
      QF_ROWS(8)
#undef QF_ROWS
    }
  }

  static void panel(const float* packed_x, int64_t tiles, const QuantRows& w, int64_t columns, float* panel,
                    float* waiting, float* sums, int64_t ld_sums) {
    run_panels<DotF32>(
        packed_x, tiles, w.k, panel,
        [&](int64_t first, int64_t last) { pack_quant_steps<Block>(w, columns, first, last, panel); }, waiting, sums,
        ld_sums);
  }

  static constexpr QuantDotKernels kTable = {rows, panel, outer_pack_quant<Block>};
};

inline void reorder_columns(const float* x, float* y, int64_t k) {
  for (int64_t block = 0; block < k; block += kQuantBlock) {
    for (int64_t i = 0; i < kQuantBlock; i++) y[block + i] = x[block + 8 * (i % 4) + i / 4];
  }
}

// The largest magnitude; NaN counts as none.
inline float largest_of(const float* w, int64_t count) {
  Vf largest = zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vf magnitude = vabs(load_partial(w + i, smaller(kLanes, count - i)));
    largest = select(less(largest, magnitude), magnitude, largest);
  }
  return reduce_max(largest);
}

inline void quantize_group(const float* w, int64_t count, int32_t bits, uint8_t* q, float* scale) {
  const float limit = bits == 8 ? 127.0f : 7.0f;
  *scale = largest_of(w, count) / limit;
  const bool is_zero = !(*scale > 0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = smaller(kLanes, count - i);
    Vf level = zero();
    if (!is_zero) {
      level = round_even(load_partial(w + i, n) / broadcast(*scale));
      level = select(is_nan(level), zero(), vmin(vmax(level, broadcast(-limit)), broadcast(limit)));
    }
    uint8_t levels[kLanes];
    store_i8(levels, bits == 8 ? level : level + broadcast(8.0f));
    if (bits == 8) {
      for (int64_t j = 0; j < n; j++) q[i + j] = levels[j];
    } else {
      for (int64_t j = 0; j < n; j += 2) q[(i + j) / 2] = static_cast<uint8_t>(levels[j] | levels[j + 1] << 4);
    }
  }
}

inline constexpr QuantKernels kQuantKernels = {
    QuantEntries<Int8Block>::kTable,
    QuantEntries<Int4Block>::kTable,
    reorder_columns,
    quantize_group,
};

}  // namespace qformer::cpu::QF_ISA
