// quant_linear: weights widened to the activations' dtype in scratch, then the product of gemm.h on them. So it has the
// bits of linear on the widened weights, whatever m is. Few rows take a kernel that widens in registers
// (quant_decode.h), with the same bits.
//
// The weight goes through in slices of rows that stay in L2 between writing and reading; every slice is summed in the
// order of the whole matrix (GemmArgs::w_rows).
// Traffic per slice: codes and scales once from memory, the widened weights once into L2 and from there as in linear.
// Registers of the widening kernel on sm_90: 32.
#include <algorithm>
#include <type_traits>

#include "entry.h"
#include "gemm.h"
#include "quant_decode.h"
#include "row_chunks.cuh"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr const char* kName = "quantLinear";
constexpr int kMaxThreads = 256;
constexpr size_t kScratchAlignment = 256;
constexpr int64_t kSliceAlign = 256;  // rows: whole tiles of every GEMM kernel
#ifdef QF_EMULATED
constexpr int64_t kSliceBytes = int64_t{64} << 10;  // small, so that tests have several slices
#else
constexpr int64_t kSliceBytes = int64_t{32} << 20;  // of widened weights
#endif

struct WidenArgs {
  const uint8_t* q;        // [rows, k * bits / 8]
  const uint16_t* scales;  // [rows, k / group] bf16
  void* w;                 // [rows, k] dense
  int32_t k, group;
  bool whole;  // a chunk of 8 columns has one scale, and its codes and values are aligned to their size
};

QF_DEVICE float scale_at(Global<const uint16_t> scales, int64_t i) { return to_float(BFloat16{scales.load(i)}); }

QF_DEVICE float level_of(Global<const uint8_t> q, int i, int bits) {
  if (bits == 8) return static_cast<float>(static_cast<int8_t>(q.load(i)));
  return static_cast<float>((q.load(i / 2) >> (i % 2 * 4) & 15) - 8);
}

// A row per blockIdx.x, a thread per chunk of 8 columns.
template <class T, int kBits>
QF_KERNEL void QF_LAUNCH_BOUNDS(kMaxThreads, 1) widen_rows(WidenArgs args) {
  const int64_t row = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * kChunk;
  if (column >= args.k) return;
  const Global<const uint8_t> q = Global<const uint8_t>(args.q) + row * (int64_t{args.k} * kBits / 8);
  const Global<const uint16_t> scales = Global<const uint16_t>(args.scales) + row * (args.k / args.group);
  float w[kChunk];
  if (args.whole) {
    const float scale = scale_at(scales, column / args.group);
    const auto codes = q.template load_vec_streaming<kBits>(column / 8 * kBits);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const int level = kBits == 8 ? static_cast<int8_t>(codes[j]) : (codes[j / 2] >> (j % 2 * 4) & 15) - 8;
      w[j] = static_cast<float>(level) * scale;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const int i = column + j;
      w[j] = i < args.k ? level_of(q, i, kBits) * scale_at(scales, i / args.group) : 0.0f;
    }
  }
  store_chunk(Global<T>(static_cast<T*>(args.w)) + row * args.k, column, args.k, args.whole, w);
}

template <class T>
QfStatus widen(DeviceContext& context, const WidenArgs& args, int64_t rows, int32_t bits) {
  const int chunks = (args.k + kChunk - 1) / kChunk;
  const int threads = std::clamp((chunks + 31) / 32 * 32, 32, kMaxThreads);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((chunks + threads - 1) / threads));
  return launch(kName, context.stream, bits == 8 ? widen_rows<T, 8> : widen_rows<T, 4>, grid,
                dim3(static_cast<unsigned>(threads)), 0, args);
}

QfStatus widen(DeviceContext& context, const WidenArgs& args, int64_t rows, int32_t bits, int32_t dtype) {
  switch (dtype) {
    case QF_F32:
      return widen<float>(context, args, rows, bits);
    case QF_F16:
      return widen<Half>(context, args, rows, bits);
    default:
      return widen<BFloat16>(context, args, rows, bits);
  }
}

// Rows of a slice: as even as tiles allow.
int64_t slice_rows(int64_t n, int64_t row_bytes) {
  const int64_t most = std::max(kSliceBytes / std::max<int64_t>(row_bytes, 1) / kSliceAlign, int64_t{1}) * kSliceAlign;
  const int64_t slices = (n + most - 1) / most;
  return std::min(((n + slices - 1) / slices + kSliceAlign - 1) / kSliceAlign * kSliceAlign, n);
}

size_t padded(int64_t bytes) {
  return (static_cast<size_t>(bytes) + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
}

template <class P>
P* advance(P* p, int64_t elements, int32_t dtype) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return p == nullptr ? nullptr : static_cast<Byte*>(p) + elements * static_cast<int64_t>(qf_dtype_size(dtype));
}

GemmArgs product_of(const QfQuantLinear& op) {
  GemmArgs gemm{};
  gemm.x = op.x;
  gemm.bias = op.bias;
  gemm.residual = op.residual;
  gemm.norm_weight = op.norm_weight;
  gemm.y = op.y;
  gemm.ldx = op.ldx;
  gemm.ldw = op.k;
  gemm.ldr = op.ldr;
  gemm.ldy = op.ldy;
  gemm.m = static_cast<int32_t>(op.m);
  gemm.n = static_cast<int32_t>(op.n);
  gemm.k = static_cast<int32_t>(op.k);
  gemm.w_rows = static_cast<int32_t>(op.n);
  gemm.activation = op.activation;
  gemm.norm_eps = op.norm_eps;
  gemm.y_f32 = gemm.residual_f32 = op.y_dtype == QF_F32;
  return gemm;
}

// The product with widened weights, slice by slice.
class Slices {
 public:
  Slices(const QfQuantLinear& op, const GemmArgs& product)
      : op_(op), product_(product), rows_(slice_rows(op.n, widened_bytes(1))) {}

  // Of scratch: one slice of widened weights, and what its product wants.
  size_t bytes(const DeviceContext& context) const {
    const size_t first = gemm_workspace(context, slice_at(0), op_.dtype);
    const size_t last = gemm_workspace(context, slice_at((op_.n - 1) / rows_ * rows_), op_.dtype);
    return padded(widened_bytes(rows_)) + std::max(first, last);
  }

  QfStatus run(DeviceContext& context, char* scratch) const {
    const int64_t row_bytes = op_.k * op_.bits / 8, groups = op_.k / op_.group;
    const bool whole = op_.k % kChunk == 0 && op_.group % kChunk == 0 && reinterpret_cast<uintptr_t>(op_.q) % 8 == 0;
    for (int64_t first = 0; first < op_.n; first += rows_) {
      GemmArgs slice = slice_at(first);
      slice.w = scratch;
      const WidenArgs codes = {op_.q + first * row_bytes,
                               op_.scales + first * groups,
                               scratch,
                               slice.k,
                               static_cast<int32_t>(op_.group),
                               whole};
      QfStatus status = widen(context, codes, slice.n, op_.bits, op_.dtype);
      if (status == QF_OK)
        status = run_gemm(context, kName, slice, op_.dtype, op_.dtype, scratch + padded(widened_bytes(rows_)));
      if (status != QF_OK) return status;
    }
    return QF_OK;
  }

 private:
  int64_t widened_bytes(int64_t rows) const { return rows * op_.k * static_cast<int64_t>(qf_dtype_size(op_.dtype)); }

  GemmArgs slice_at(int64_t first) const {
    GemmArgs slice = product_;
    slice.n = static_cast<int32_t>(std::min(rows_, op_.n - first));
    slice.bias = op_.bias == nullptr ? nullptr : op_.bias + first;
    slice.residual = advance(op_.residual, first, op_.y_dtype);
    slice.y = advance(op_.y, first, op_.y_dtype);
    return slice;
  }

  const QfQuantLinear& op_;
  const GemmArgs& product_;
  const int64_t rows_;
};

}  // namespace

QfStatus quant_linear(int32_t device, const QfQuantLinear* args) {
  const QfQuantLinear& op = *args;
  if (op.m <= 0 || op.n <= 0) return QF_OK;
  if (const QfStatus status = check_gemm_sizes(kName, op.m, op.n, op.k); status != QF_OK) return status;
  DeviceContext& context = context_of(device);
  GemmArgs product = product_of(op);
  size_t normed_bytes = 0;
  if (op.norm_weight != nullptr && !gemm_normalises(context, product, op.dtype)) {
    normed_bytes = padded(op.m * op.k * static_cast<int64_t>(qf_dtype_size(op.dtype)));
    product.norm_weight = nullptr;
    product.ldx = op.k;
    product.x = nullptr;  // stands for the scratch, which is aligned as well
  }
  const QuantWeights weights = {op.q, op.scales, static_cast<int32_t>(op.group), op.bits};
  const bool streams = quant_decode_serves(context, product, weights, op.dtype);
  const Slices slices(op, product);
  const size_t bytes = normed_bytes + (streams ? 0 : slices.bytes(context));
  void* scratch = nullptr;
  if (bytes > 0) {
    if (const QfStatus status = context.scratch(bytes, &scratch); status != QF_OK) return status;
  }
  if (normed_bytes > 0) {
    product.x = scratch;
    const QfRmsNorm norm = {op.x, op.norm_weight, scratch, op.m, op.k, op.ldx, op.norm_eps, op.dtype};
    if (const QfStatus status = rms_norm(device, &norm); status != QF_OK) return status;
  }
  if (streams) return run_quant_decode(context, kName, product, weights, op.dtype);
  return slices.run(context, static_cast<char*>(scratch) + normed_bytes);
}

}  // namespace qformer::cuda
