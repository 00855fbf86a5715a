// Image preprocessing: Pillow's bicubic resize and the pixel normalisation, both bit for bit as on the CPU.
//
// The filter taps come from the host (backend/resample_axis.h) and are uploaded with each call; both passes are integer
// multiply-adds. Horizontal: a thread makes one pixel, neighbours share their taps in L1; vertical: a thread makes four
// bytes of a row, whose taps are the same for the whole block. Normalisation looks its value up among 256 per channel,
// which each block computes first. Traffic: source once, intermediate [rows needed, out_width, 3] u8 once out and in.
#include <vector>

#include "backend/resample_axis.h"
#include "entry.h"
#include "prims/shared.h"
#include "runtime/capture.h"
#include "runtime/device.h"
#include "runtime/launch.h"
#include "runtime/staging.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBytes = 4;  // of a row per thread of the vertical pass
constexpr unsigned kMaxRows = 65535;

// Taps on the device; output i is the sum over k < count[i] of weights[i * taps + k] * input[first[i] + k].
struct DeviceAxis {
  const int32_t* first;
  const int32_t* count;
  const int32_t* weights;
  int64_t outputs, taps;
};

struct HorizontalArgs {
  const uint8_t* x;  // [rows, width, 3]
  uint8_t* y;        // [rows, axis.outputs, 3]
  int64_t rows, width;
  DeviceAxis axis;
};

struct VerticalArgs {
  const uint8_t* x;  // rows from `top` on, `columns` bytes each
  uint8_t* y;        // [axis.outputs, columns]
  int64_t top, columns;
  DeviceAxis axis;
  bool wide;
};

constexpr int32_t kHalf = 1 << (ResampleAxis::kBits - 1);

QF_DEVICE uint8_t round_to_u8(int32_t sum) {
  const int32_t value = sum >> ResampleAxis::kBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) resize_horizontal(HorizontalArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= args.axis.outputs) return;
  const int32_t count = Global<const int32_t>(args.axis.count)[i];
  const Global<const int32_t> weights = Global<const int32_t>(args.axis.weights) + i * args.axis.taps;
  const int64_t first = Global<const int32_t>(args.axis.first)[i];
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    const Global<const uint8_t> x = Global<const uint8_t>(args.x) + (row * args.width + first) * 3;
    int32_t sum[3] = {kHalf, kHalf, kHalf};
    for (int32_t k = 0; k < count; ++k) {
      const int32_t weight = weights[k];
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[c] += weight * x[k * 3 + c];
    }
    const Global<uint8_t> y = Global<uint8_t>(args.y) + (row * args.axis.outputs + i) * 3;
#pragma unroll
    for (int c = 0; c < 3; ++c) y.store(c, round_to_u8(sum[c]));
  }
}

QF_DEVICE void resize_column(const VerticalArgs& args, Global<const uint8_t> x, Global<const int32_t> weights,
                             int32_t count, int64_t row, int64_t column) {
  int32_t sum = kHalf;
  for (int32_t k = 0; k < count; ++k) sum += weights[k] * x[k * args.columns + column];
  Global<uint8_t>(args.y).store(row * args.columns + column, round_to_u8(sum));
}

QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) resize_vertical(VerticalArgs args) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kBytes;
  if (column >= args.columns) return;
  for (int64_t row = blockIdx.y; row < args.axis.outputs; row += gridDim.y) {
    const int32_t count = Global<const int32_t>(args.axis.count)[row];
    const Global<const int32_t> weights = Global<const int32_t>(args.axis.weights) + row * args.axis.taps;
    const int64_t first = Global<const int32_t>(args.axis.first)[row];
    const Global<const uint8_t> x = Global<const uint8_t>(args.x) + (first - args.top) * args.columns;
    if (!args.wide) {
      for (int64_t j = column; j < column + kBytes && j < args.columns; ++j) {
        resize_column(args, x, weights, count, row, j);
      }
      continue;
    }
    int32_t sum[kBytes] = {kHalf, kHalf, kHalf, kHalf};
    for (int32_t k = 0; k < count; ++k) {
      const int32_t weight = weights[k];
      const Vec<uint8_t, kBytes> bytes = x.load_vec<kBytes>(k * args.columns + column);
#pragma unroll
      for (int j = 0; j < kBytes; ++j) sum[j] += weight * bytes[j];
    }
    Vec<uint8_t, kBytes> out;
#pragma unroll
    for (int j = 0; j < kBytes; ++j) out[j] = round_to_u8(sum[j]);
    Global<uint8_t>(args.y).store_vec<kBytes>(row * args.columns + column, out);
  }
}

QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) normalize_pixels(QfNormalizeImage args) {
  SharedMemory shared;
  const Shared<float> table = shared.take<float>(3 * 256);
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += kThreads) {
      const float value = static_cast<float>(static_cast<double>(i) * args.rescale);
      table.store(c * 256 + i, (value - args.mean[c]) / args.std[c]);
    }
  }
  __syncthreads();
  const int64_t pixels = args.height * args.width, step = static_cast<int64_t>(gridDim.x) * kThreads;
  const Global<const uint8_t> x(args.x);
  const Global<float> y(args.y);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < pixels; i += step) {
#pragma unroll
    for (int c = 0; c < 3; ++c) y.store(c * pixels + i, table[c * 256 + x[i * 3 + c]]);
  }
}

unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

unsigned row_blocks(int64_t rows) { return rows < kMaxRows ? static_cast<unsigned>(rows) : kMaxRows; }

// The tables of one axis, packed as they go to the device: first, count, weights.
std::vector<int32_t> pack_axis(const ResampleAxis& axis) {
  std::vector<int32_t> packed;
  packed.reserve(axis.first.size() * 2 + axis.weights.size());
  for (const int64_t first : axis.first) packed.push_back(static_cast<int32_t>(first));
  for (const int64_t count : axis.count) packed.push_back(static_cast<int32_t>(count));
  packed.insert(packed.end(), axis.weights.begin(), axis.weights.end());
  return packed;
}

DeviceAxis axis_at(const int32_t* tables, const ResampleAxis& axis) {
  const auto outputs = static_cast<int64_t>(axis.first.size());
  return {tables, tables + outputs, tables + 2 * outputs, outputs, axis.taps};
}

QfStatus launch_horizontal(cudaStream_t stream, const HorizontalArgs& args) {
  const dim3 grid(blocks_for(args.axis.outputs, kThreads), row_blocks(args.rows));
  return launch("resizeBicubic", stream, resize_horizontal, grid, dim3(kThreads), 0, args);
}

QfStatus launch_vertical(cudaStream_t stream, VerticalArgs args) {
  const auto address = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.y);
  args.wide = args.columns % kBytes == 0 && address % kBytes == 0;
  const dim3 grid(blocks_for(args.columns, kThreads * kBytes), row_blocks(args.axis.outputs));
  return launch("resizeBicubic", stream, resize_vertical, grid, dim3(kThreads), 0, args);
}

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

QfStatus copy_image(int32_t device, const QfResizeBicubic& a) {
  const int64_t bytes = a.height * a.width * 3;
  const QfCopy args = {a.x, a.y, {1, 1, 1, bytes}, {0, 0, 0, 1}, {0, 0, 0, 1}, QF_U8, QF_U8};
  return copy(device, &args);
}

}  // namespace

QfStatus resize_bicubic(int32_t device, const QfResizeBicubic* op) {
  const auto& a = *op;
  if (a.height == 0 || a.width == 0 || a.out_height == 0 || a.out_width == 0) return QF_OK;
  const bool across = a.width != a.out_width, down = a.height != a.out_height;
  if (!across && !down) return copy_image(device, a);
  DeviceContext& context = context_of(device);
  if (context.capture != nullptr) {
    return fail(QF_UNSUPPORTED, "resizeBicubic uploads its filter and cannot be part of a graph");
  }
  const ResampleAxis horizontal = across ? make_resample_axis(a.width, a.out_width) : ResampleAxis();
  const ResampleAxis vertical = down ? make_resample_axis(a.height, a.out_height) : ResampleAxis();
  std::vector<int32_t> tables = pack_axis(horizontal);
  const size_t vertical_table = tables.size();
  const std::vector<int32_t> more = pack_axis(vertical);
  tables.insert(tables.end(), more.begin(), more.end());

  // Source rows that the vertical pass reads.
  const int64_t top = down ? vertical.first.front() : 0;
  const int64_t rows = down ? vertical.first.back() + vertical.count.back() - top : a.height;
  const size_t table_bytes = aligned(tables.size() * sizeof(int32_t));
  const size_t between = across && down ? static_cast<size_t>(rows * a.out_width * 3) : 0;
  void* scratch = nullptr;
  QfStatus status = context.scratch(table_bytes + between, &scratch);
  if (status == QF_OK) status = context.staging->upload(scratch, tables.data(), tables.size() * sizeof(int32_t));
  if (status != QF_OK) return status;
  const auto* device_tables = static_cast<const int32_t*>(scratch);
  auto* intermediate = static_cast<uint8_t*>(scratch) + table_bytes;
  if (across) {
    status = launch_horizontal(context.stream, {a.x + top * a.width * 3, down ? intermediate : a.y, rows, a.width,
                                                axis_at(device_tables, horizontal)});
  }
  if (status != QF_OK || !down) return status;
  const int64_t columns = a.out_width * 3;
  return launch_vertical(context.stream, {across ? intermediate : a.x + top * columns, a.y, top, columns,
                                          axis_at(device_tables + vertical_table, vertical), false});
}

QfStatus normalize_image(int32_t device, const QfNormalizeImage* args) {
  const int64_t pixels = args->height * args->width;
  if (pixels == 0) return QF_OK;
  const unsigned blocks = blocks_for(pixels, kThreads * 8);
  return launch("normalizeImage", context_of(device).stream, normalize_pixels, dim3(blocks), dim3(kThreads),
                shared_bytes<float>(3 * 256), *args);
}

}  // namespace qformer::cuda
