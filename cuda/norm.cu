// Layer norm and RMS norm over the last axis.
//
// A warp per row up to 1024 columns, a block above; the row stays in registers between the passes (up to 16384 columns,
// read again from L2 beyond). Layer norm takes the mean first, then the variance of the differences with the sum of the
// differences as correction of the mean's own rounding, as the CPU does. Traffic: x once in, y once out; weight and
// bias come from L2. Source: Ba et al. 2016; Zhang and Sennrich 2019.
#include "entry.h"
#include "row_chunks.cuh"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

// Both norms; `bias` is null for RMS norm. The three `wide` say where 16-byte accesses are allowed.
struct NormArgs {
  const void* x;
  const float* weight;
  const float* bias;
  void* y;
  int64_t rows, cols, ldx;
  float eps;
  bool wide_x, wide_y, wide_weight;
};

struct Affine {
  float mean, shift, scale;
};

template <class T>
QF_DEVICE void normalize_chunk(const NormArgs& a, int64_t row, int64_t i, const Affine& by, float (&v)[kChunk]) {
  float weight[kChunk];
  load_chunk(Global<const float>(a.weight), i, a.cols, a.wide_weight, weight);
  if (a.bias == nullptr) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = v[j] * by.scale * weight[j];
  } else {
    float bias[kChunk];
    load_chunk(Global<const float>(a.bias), i, a.cols, a.wide_weight, bias);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) v[j] = fmaf(((v[j] - by.mean) - by.shift) * by.scale, weight[j], bias[j]);
  }
  store_chunk(Global<T>(static_cast<T*>(a.y)) + row * a.cols, i, a.cols, a.wide_y, v);
}

QF_DEVICE float sum_of(const float (&v)[kChunk]) {
  return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

// Adds the squares of v to `square`; elements past the end are zeros.
QF_DEVICE float add_squares(const float (&v)[kChunk], float square) {
#pragma unroll
  for (int j = 0; j < kChunk; ++j) square = fmaf(v[j], v[j], square);
  return square;
}

// Differences from the mean; `drift` is their sum.
QF_DEVICE void add_differences(const float (&v)[kChunk], int64_t i, int64_t cols, float mean, float& drift,
                               float& square) {
  float d[kChunk];
#pragma unroll
  for (int j = 0; j < kChunk; ++j) d[j] = i + j < cols ? v[j] - mean : 0.0f;
  drift += sum_of(d);
  square = add_squares(d, square);
}

QF_DEVICE Affine layer_affine(float mean, float drift, float square, const NormArgs& a) {
  const float count = static_cast<float>(a.cols);
  const float shift = drift / count;
  const float variance = fmaxf(square / count - shift * shift, 0.0f);
  return {mean, shift, 1.0f / sqrtf(variance + a.eps)};
}

// The row in registers. kChunks per thread.
template <class T, int kChunks, bool kWarpPerRow>
QF_KERNEL void QF_LAUNCH_BOUNDS(kWarpPerRow ? 128 : 512, 1) norm_held(NormArgs a) {
  RowGroup<kWarpPerRow> group;
  const int64_t row =
      group.row < a.rows ? group.row : a.rows - 1;  // a warp past the end goes along, and stores nothing
  const Global<const T> x = Global<const T>(static_cast<const T*>(a.x)) + row * a.ldx;
  float held[kChunks][kChunk];
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    load_chunk(x, static_cast<int64_t>(c * group.size + group.lane) * kChunk, a.cols, a.wide_x, held[c]);
  }
  Affine by = {0.0f, 0.0f, 0.0f};
  if (a.bias == nullptr) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) sum = add_squares(held[c], sum);
    by.scale = 1.0f / sqrtf(group.sum(sum) / static_cast<float>(a.cols) + a.eps);
  } else {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) sum += sum_of(held[c]);
    const float mean = group.sum(sum) / static_cast<float>(a.cols);
    float drift = 0.0f, square = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t i = static_cast<int64_t>(c * group.size + group.lane) * kChunk;
      add_differences(held[c], i, a.cols, mean, drift, square);
    }
    group.sums(drift, square);
    by = layer_affine(mean, drift, square, a);
  }
  if (group.row >= a.rows) return;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const int64_t i = static_cast<int64_t>(c * group.size + group.lane) * kChunk;
    if (i < a.cols) normalize_chunk<T>(a, row, i, by, held[c]);
  }
}

// A row of any length, read once per pass.
template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(1024, 1) norm_streamed(NormArgs a) {
  RowGroup<false> group;
  const Global<const T> x = Global<const T>(static_cast<const T*>(a.x)) + group.row * a.ldx;
  const int64_t begin = static_cast<int64_t>(group.lane) * kChunk, step = static_cast<int64_t>(group.size) * kChunk;
  float v[kChunk];
  float sum = 0.0f;
  for (int64_t i = begin; i < a.cols; i += step) {
    load_chunk(x, i, a.cols, a.wide_x, v);
    sum = a.bias == nullptr ? add_squares(v, sum) : sum + sum_of(v);
  }
  const float mean = group.sum(sum) / static_cast<float>(a.cols);
  Affine by = {0.0f, 0.0f, 1.0f / sqrtf(mean + a.eps)};
  if (a.bias != nullptr) {
    float drift = 0.0f, square = 0.0f;
    for (int64_t i = begin; i < a.cols; i += step) {
      load_chunk(x, i, a.cols, a.wide_x, v);
      add_differences(v, i, a.cols, mean, drift, square);
    }
    group.sums(drift, square);
    by = layer_affine(mean, drift, square, a);
  }
  for (int64_t i = begin; i < a.cols; i += step) {
    load_chunk(x, i, a.cols, a.wide_x, v);
    normalize_chunk<T>(a, group.row, i, by, v);
  }
}

template <class T, int kChunks>
QfStatus launch_held(const char* op, cudaStream_t stream, const RowShape& shape, const NormArgs& args) {
  const dim3 grid = grid_of_rows(shape, args.rows), block(static_cast<unsigned>(shape.threads));
  if (shape.warp_per_row) {
    return launch(op, stream, norm_held<T, kChunks, true>, grid, block, RowGroup<true>::bytes(), args);
  }
  return launch(op, stream, norm_held<T, kChunks, false>, grid, block, RowGroup<false>::bytes(), args);
}

template <class T>
QfStatus launch_norm(const char* op, int32_t device, NormArgs args) {
  if (args.rows == 0 || args.cols == 0) return QF_OK;
  args.wide_x = rows_are_wide(static_cast<const T*>(args.x), args.rows, args.ldx);
  args.wide_y = rows_are_wide(static_cast<const T*>(args.y), args.rows, args.cols);
  args.wide_weight = rows_are_wide(args.weight, 1, 0) && rows_are_wide(args.bias, 1, 0);
  const RowShape shape = row_shape(args.cols);
  const cudaStream_t stream = context_of(device).stream;
  switch (shape.chunks) {
    case 1:
      return launch_held<T, 1>(op, stream, shape, args);
    case 2:
      return launch_held<T, 2>(op, stream, shape, args);
    case 4:
      return launch_held<T, 4>(op, stream, shape, args);
    default:
      return launch(op, stream, norm_streamed<T>, dim3(static_cast<unsigned>(args.rows)),
                    dim3(static_cast<unsigned>(shape.threads)), RowGroup<false>::bytes(), args);
  }
}

QfStatus norm_of_dtype(const char* op, int32_t device, int32_t dtype, const NormArgs& args) {
  switch (dtype) {
    case QF_F32:
      return launch_norm<float>(op, device, args);
    case QF_F16:
      return launch_norm<Half>(op, device, args);
    case QF_BF16:
      return launch_norm<BFloat16>(op, device, args);
    default:
      return fail(QF_UNSUPPORTED, "%s: dtype %s", op, qf_dtype_name(dtype));
  }
}

}  // namespace

QfStatus layer_norm(int32_t device, const QfLayerNorm* args) {
  const NormArgs norm = {args->x,   args->weight, args->bias, args->y, args->rows, args->cols,
                         args->ldx, args->eps,    false,      false,   false};
  return norm_of_dtype("layerNorm", device, args->dtype, norm);
}

QfStatus rms_norm(int32_t device, const QfRmsNorm* args) {
  const NormArgs norm = {args->x,   args->weight, nullptr, args->y, args->rows, args->cols,
                         args->ldx, args->eps,    false,   false,   false};
  return norm_of_dtype("rmsNorm", device, args->dtype, norm);
}

}  // namespace qformer::cuda
