// From accumulators to y: bias, activation or gate, residual, all in f32, then one rounding and 16-byte stores.
//
// A warp turns its fragments into rows through 2 KB of shared memory of its own, 16 rows by 32 columns at a time (16
// columns when gated), without a block barrier. A lane then owns 8 consecutive columns. The 16-byte chunks of a staged
// row are swizzled so that the fragment writes (8 bytes) and the row reads (16 bytes) are both free of bank conflicts.
#pragma once

#include "activation.cuh"
#include "gemm_mainloop.cuh"

namespace qformer::cuda {

inline constexpr int kStagedRows = 16;
inline constexpr int kStagedColumns = 32;
inline constexpr int kSegment = 8;  // columns of a lane

QF_DEVICE int staged_index(int row, int column) {
  const int swizzle = (row & 3) * 2 | (row & 1);
  return row * kStagedColumns + ((column / 4) ^ swizzle) * 4 + column % 4;
}

// 8 columns from p[i] on, as f32; `count` of them exist.
template <class T>
QF_DEVICE void load_segment(Global<const T> p, int64_t i, bool vectors, int count, float (&out)[kSegment]) {
  if (vectors && count >= kSegment) {
    constexpr int kVector = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < kSegment / kVector; ++part) {
      const Vec<T, kVector> values = p.template load_vec<kVector>(i + part * kVector);
#pragma unroll
      for (int e = 0; e < kVector; ++e) out[part * kVector + e] = to_float(values[e]);
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kSegment; ++e) out[e] = e < count ? to_float(p.load(i + e)) : 0.0f;
}

template <class T>
QF_DEVICE void store_segment(Global<T> p, int64_t i, bool vectors, int count, const float (&values)[kSegment]) {
  if (vectors && count >= kSegment) {
    constexpr int kVector = 16 / sizeof(T);
#pragma unroll
    for (int part = 0; part < kSegment / kVector; ++part) {
      Vec<T, kVector> rounded;
#pragma unroll
      for (int e = 0; e < kVector; ++e) rounded[e] = from_float<T>(values[part * kVector + e]);
      p.template store_vec<kVector>(i + part * kVector, rounded);
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kSegment; ++e)
    if (e < count) p.store(i + e, from_float<T>(values[e]));
}

// What happens to 8 finished sums of one row. T is the activations' dtype.
template <class T>
class SegmentWriter {
 public:
  // `column`: the first of the lane's 8 output columns, the same for every row. A gated product has neither bias nor
  // residual, and its activation is already applied.
  QF_DEVICE SegmentWriter(const GemmArgs& args, int column, bool gated)
      : args_(args), column_(column), count_(args.n - column), gated_(gated) {}

  QF_DEVICE void write(int row, float (&values)[kSegment]) const {
    if (row >= args_.m || count_ <= 0) return;
    int64_t y_row = row, residual_row = row;
    if (args_.row_period > 0) {
      y_row += row / args_.row_period + 1;
      residual_row = row % args_.row_period + 1;
    }
    if (!gated_) {
      if (args_.bias != nullptr) add_bias(values);
      activate(values, args_.activation);
      if (args_.residual != nullptr) add_residual(residual_row * args_.ldr + column_, values);
    }
    const int64_t i = y_row * args_.ldy + column_;
    if (args_.y_f32 != 0)
      store_segment(Global<float>(static_cast<float*>(args_.y)), i, args_.y_vectors != 0, count_, values);
    else
      store_segment(Global<T>(static_cast<T*>(args_.y)), i, args_.y_vectors != 0, count_, values);
  }

 private:
  // Read again for every row, from L1: eight registers more would cost the 128 × 128 tile its second block.
  QF_DEVICE void add_bias(float (&values)[kSegment]) const {
    float bias[kSegment];
    load_segment(Global<const float>(args_.bias), column_, args_.bias_vectors != 0, count_, bias);
#pragma unroll
    for (int e = 0; e < kSegment; ++e) values[e] += bias[e];
  }

  QF_DEVICE void add_residual(int64_t i, float (&values)[kSegment]) const {
    float residual[kSegment];
    const bool vectors = args_.residual_vectors != 0;
    if (args_.residual_f32 != 0)
      load_segment(Global<const float>(static_cast<const float*>(args_.residual)), i, vectors, count_, residual);
    else
      load_segment(Global<const T>(static_cast<const T*>(args_.residual)), i, vectors, count_, residual);
#pragma unroll
    for (int e = 0; e < kSegment; ++e) values[e] += residual[e];
  }

  const GemmArgs& args_;
  int column_, count_;
  bool gated_;
};

// The 16 × 32 sums of fragment row `i` in the `half`-th 32 columns; gated: 16 × 16 values act(gate) * up.
template <class Tile, bool kGated>
QF_DEVICE void stage_fragments(const Accumulators<Tile>& sums, int i, int half, int32_t activation,
                               Shared<float> staging) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  constexpr int kTiles = kGated ? 2 : 4;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Vec<float, 2> pair;
      if constexpr (kGated) {
        const float(&up)[4] = sums[i][Tile::kMmaN / 2 + 2 * half + j];
        float gate[2] = {sums[i][2 * half + j][2 * r], sums[i][2 * half + j][2 * r + 1]};
        activate(gate, activation);
        pair[0] = gate[0] * up[2 * r];
        pair[1] = gate[1] * up[2 * r + 1];
      } else {
        pair[0] = sums[i][4 * half + j][2 * r];
        pair[1] = sums[i][4 * half + j][2 * r + 1];
      }
      staging.template store_vec<2>(staged_index(g + 8 * r, 8 * j + 2 * t), pair);
    }
  }
}

// Writes a warp's tile of y. `row` and `column`: the first row and output column of the block; `staging` is the
// block's.
template <class T, class Tile, bool kGated>
QF_DEVICE void write_tile(const GemmArgs& args, int row, int column, const Accumulators<Tile>& sums,
                          Shared<float> block_staging) {
  constexpr int kColumns = kGated ? kStagedColumns / 2 : kStagedColumns;  // of y, staged at a time
  constexpr int kSegments = kColumns / kSegment;
  constexpr int kRowsAtOnce = kWarpSize / kSegments;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const Shared<float> staging = block_staging + warp * (kStagedRows * kStagedColumns);
  row += warp / Tile::kWarpCountN * Tile::kWarpRows;
  column += warp % Tile::kWarpCountN * (kGated ? Tile::kWarpWeights / 2 : Tile::kWarpWeights);
  const int segment = lane % kSegments * kSegment;
#pragma unroll
  for (int half = 0; half < Tile::kWarpWeights / kStagedColumns; ++half) {
    const SegmentWriter<T> writer(args, column + half * kColumns + segment, kGated);
#pragma unroll
    for (int i = 0; i < Tile::kMmaM; ++i) {
      __syncwarp();
      stage_fragments<Tile, kGated>(sums, i, half, args.activation, staging);
      __syncwarp();
#pragma unroll 1  // unrolled, the activations of both rows would be in flight and cost registers
      for (int r = lane / kSegments; r < kStagedRows; r += kRowsAtOnce) {
        float values[kSegment];
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const Vec<float, 4> quad = staging.template load_vec<4>(staged_index(r, segment + 4 * part));
#pragma unroll
          for (int e = 0; e < 4; ++e) values[4 * part + e] = quad[e];
        }
        writer.write(row + i * 16 + r, values);
      }
    }
  }
}

}  // namespace qformer::cuda
