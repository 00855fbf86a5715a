// LoRA merge: y = w + scaling * b · a in f32, rounded once.
//
// A block owns 256 columns of up to 128 rows; a thread holds 4 rows x 8 columns of b · a, so that of a tile in shared
// memory each value read serves four rows. Ranks above 16 go through in tiles of 16, in order, as on the CPU: f32
// results are the same bits. Two blocks per multiprocessor leave a thread 128 registers, half of which hold w and b ·
// a, so the loops around those are not unrolled. w is streamed past L1, 16 bytes a time. Traffic: w once in, y once
// out; a [16, 256] tile of a per block of rows from L2. Source: Hu et al. 2021 (LoRA), section 4.1.
#include "entry.h"
#include "row_chunks.cuh"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCols = 32 * kChunk;  // of a block
constexpr int kRowsOfThread = 4;
constexpr int kStepRows = kThreads / 32 * kRowsOfThread;  // of a block at a time
constexpr int kSteps = 4;
constexpr int kRankTile = 16;

struct MergeArgs {
  QfLoraMerge op;
  bool wide;
  bool in_place;  // w changes under way: no non-coherent loads
};

// a[rank tile, columns of the block] into shared memory; zeros past the edges.
QF_DEVICE void load_a(Shared<float> tile, const QfLoraMerge& op, int64_t first_rank, int64_t first_col) {
  const Global<const float> a(op.a);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRankTile * kCols; i += kThreads) {
    const int64_t rank = first_rank + i / kCols, col = first_col + i % kCols;
    tile.store(i, rank < op.rank && col < op.in ? a[rank * op.in + col] : 0.0f);
  }
}

// b[rows of the step, rank tile] into shared memory, [rank][row].
QF_DEVICE void load_b(Shared<float> tile, const QfLoraMerge& op, int64_t first_rank, int64_t first_row) {
  const Global<const float> b(op.b);
  for (int i = static_cast<int>(threadIdx.x); i < kRankTile * kStepRows; i += kThreads) {
    const int64_t row = first_row + i / kRankTile, rank = first_rank + i % kRankTile;
    tile.store(i % kRankTile * kStepRows + i / kRankTile,
               rank < op.rank && row < op.out ? b[row * op.rank + rank] : 0.0f);
  }
}

// Ranks in ascending order; a rank past the end would add 0 · 0 and is left out, so that -0 stays -0.
QF_DEVICE void add_products(Shared<const float> a, Shared<const float> b, int ranks,
                            float (&delta)[kRowsOfThread][kChunk]) {
#pragma unroll 1
  for (int rank = 0; rank < ranks; ++rank) {
    const Vec<float, 4> left = a.load_vec<4>(rank * kCols), right = a.load_vec<4>(rank * kCols + 4);
    const Vec<float, 4> factor = b.load_vec<4>(rank * kStepRows);
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        delta[r][j] = fmaf(factor[r], left[j], delta[r][j]);
        delta[r][j + 4] = fmaf(factor[r], right[j], delta[r][j + 4]);
      }
    }
  }
}

// The w of one thread: 4 rows x 8 columns, under way while b · a is formed.
template <class T>
struct WeightTile {
  static constexpr int kPart = 16 / sizeof(T), kParts = kChunk / kPart;
  Vec<T, kPart> packed[kRowsOfThread][kParts];

  QF_DEVICE void load(const MergeArgs& args, int64_t row, int64_t col) {
    const Global<const T> w(static_cast<const T*>(args.op.w));
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      if (row + r >= args.op.out) break;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int64_t i = (row + r) * args.op.in + col + part * kPart;
        packed[r][part] = args.in_place ? w.template load_vec<kPart>(i) : w.template load_vec_streaming<kPart>(i);
      }
    }
  }

  QF_DEVICE void unpack(int r, float (&w)[kChunk]) const {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) w[j] = to_float(packed[r][j / kPart][j % kPart]);
  }
};

template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 2) merge_tiles(MergeArgs args) {
  const QfLoraMerge& op = args.op;
  SharedMemory shared;
  const Shared<float> a = shared.take<float>(kRankTile * kCols), b = shared.take<float>(kRankTile * kStepRows);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t first_col = static_cast<int64_t>(blockIdx.x) * kCols, col = first_col + lane * kChunk;
  const bool one_tile = op.rank <= kRankTile, wide = args.wide && col + kChunk <= op.in;
#pragma unroll 1
  for (int step = 0; step < kSteps; ++step) {
    const int64_t first_row = (static_cast<int64_t>(blockIdx.y) * kSteps + step) * kStepRows;
    if (first_row >= op.out) break;
    const int64_t own_row = first_row + warp * kRowsOfThread;
    WeightTile<T> weights;
    if (wide) weights.load(args, own_row, col);
    float delta[kRowsOfThread][kChunk] = {};
#pragma unroll 1
    for (int64_t rank = 0; rank < op.rank; rank += kRankTile) {
      __syncthreads();  // the tiles are no longer read
      if (step == 0 || !one_tile) load_a(a, op, rank, first_col);
      load_b(b, op, rank, first_row);
      __syncthreads();
      const int ranks = op.rank - rank < kRankTile ? static_cast<int>(op.rank - rank) : kRankTile;
      add_products(a + lane * kChunk, b + warp * kRowsOfThread, ranks, delta);
    }
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      if (col >= op.in || own_row + r >= op.out) break;
      float w[kChunk];
      if (wide) {
        weights.unpack(r, w);
      } else {
        load_chunk(Global<const T>(static_cast<const T*>(op.w)) + (own_row + r) * op.in, col, op.in, false, w);
      }
#pragma unroll
      for (int j = 0; j < kChunk; ++j) w[j] = fmaf(op.scaling, delta[r][j], w[j]);
      store_chunk(Global<T>(static_cast<T*>(op.y)) + (own_row + r) * op.in, col, op.in, wide, w);
    }
  }
}

template <class T>
QfStatus launch_merge(int32_t device, const QfLoraMerge& op) {
  const MergeArgs args = {op,
                          rows_are_wide(static_cast<const T*>(op.w), op.out, op.in) &&
                              rows_are_wide(static_cast<const T*>(op.y), op.out, op.in),
                          op.w == op.y};
  const dim3 grid(static_cast<unsigned>((op.in + kCols - 1) / kCols),
                  static_cast<unsigned>((op.out + kStepRows * kSteps - 1) / (kStepRows * kSteps)));
  return launch("loraMerge", context_of(device).stream, merge_tiles<T>, grid, dim3(kThreads),
                shared_bytes<float>(kRankTile * kCols) + shared_bytes<float>(kRankTile * kStepRows), args);
}

}  // namespace

QfStatus lora_merge(int32_t device, const QfLoraMerge* args) {
  if (args->out == 0 || args->in == 0) return QF_OK;
  switch (args->w_dtype) {
    case QF_F32:
      return launch_merge<float>(device, *args);
    case QF_F16:
      return launch_merge<Half>(device, *args);
    case QF_BF16:
      return launch_merge<BFloat16>(device, *args);
    default:
      return fail(QF_UNSUPPORTED, "loraMerge: dtype %s", qf_dtype_name(args->w_dtype));
  }
}

}  // namespace qformer::cuda
