// The front half of a decoder layer's attention: RMS norm, the products of q, k and v, rotation, and k and v into their
// cache slots. Few tokens take one kernel (qkv_decode.h); more take the kernels of the separate ops one after the other
// through scratch, with the same bits.
#include <algorithm>

#include "attention_launch.h"
#include "entry.h"
#include "gemm.h"
#include "qkv_decode.h"

namespace qformer::cuda {
namespace {

constexpr const char* kName = "qkvAppend";
constexpr size_t kScratchAlignment = 256;

size_t padded(size_t bytes) { return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment; }

// y = x · wᵀ for `heads` heads.
GemmArgs product_of(const QfQkvAppend& op, const void* x, const void* w, int64_t heads, void* y) {
  GemmArgs gemm{};
  gemm.x = x;
  gemm.w = w;
  gemm.y = y;
  gemm.ldx = gemm.ldw = op.k;
  gemm.ldy = heads * op.head_dim;
  gemm.m = static_cast<int32_t>(op.m);
  gemm.n = static_cast<int32_t>(gemm.ldy);
  gemm.k = static_cast<int32_t>(op.k);
  gemm.activation = QF_ACT_NONE;
  gemm.y_f32 = op.dtype == QF_F32;
  gemm.round_x_to_bf16 = op.math == QF_MATH_BF16 && op.w_dtype == QF_BF16;
  return gemm;
}

QfStatus rotate(int32_t device, const QfQkvAppend& op, int64_t heads, void* y) {
  const QfRope rope_args = {y, op.positions, op.inv_freq, y, op.m, heads, op.head_dim, heads * op.head_dim, op.dtype};
  return rope(device, &rope_args);
}

}  // namespace

QfStatus qkv_append(int32_t device, const QfQkvAppend* args) {
  const QfQkvAppend& op = *args;
  if (op.m <= 0 || op.heads <= 0) return QF_OK;
  DeviceContext& context = context_of(device);
  if (const QfStatus status = check_activation_dtype(context, kName, op.dtype); status != QF_OK) return status;
  const int64_t kv_width = op.kv_heads * op.head_dim;
  const int64_t widest = std::max(op.heads * op.head_dim, kv_width);
  if (const QfStatus status = check_gemm_sizes(kName, op.m, widest, op.k); status != QF_OK) return status;
  if (qkv_decode_normalises(context, op)) return run_qkv_decode(context, op);

  // Scratch: normalised rows, k, v, the products' own.
  QfQkvAppend normed = op;
  normed.norm_weight = nullptr;
  normed.ldx = op.k;
  normed.x = nullptr;  // stands for the scratch, which is aligned as well
  const bool streams = qkv_decode_serves(normed);
  const size_t size = qf_dtype_size(op.dtype), rows = static_cast<size_t>(op.m);
  const size_t x_bytes = padded(rows * static_cast<size_t>(op.k) * size);
  const size_t kv_bytes = streams ? 0 : padded(rows * static_cast<size_t>(kv_width) * size);
  const size_t product_bytes =
      streams ? 0
              : std::max(gemm_workspace(context, product_of(op, nullptr, op.wq, op.heads, op.q), op.dtype),
                         gemm_workspace(context, product_of(op, nullptr, op.wk, op.kv_heads, nullptr), op.dtype));
  void* scratch = nullptr;
  QfStatus status = context.scratch(x_bytes + 2 * kv_bytes + product_bytes, &scratch);
  if (status != QF_OK) return status;
  char* const k = static_cast<char*>(scratch) + x_bytes;
  char* const v = k + kv_bytes;
  char* const workspace = v + kv_bytes;
  const QfRmsNorm norm = {op.x, op.norm_weight, scratch, op.m, op.k, op.ldx, op.norm_eps, op.dtype};
  if (status = rms_norm(device, &norm); status != QF_OK) return status;
  normed.x = scratch;
  if (streams) return run_qkv_decode(context, normed);

  const auto project = [&](const void* w, int64_t heads, void* y) {
    const GemmArgs product = product_of(op, scratch, w, heads, y);
    if (status == QF_OK) status = run_gemm(context, kName, product, op.dtype, op.w_dtype, workspace);
  };
  project(op.wq, op.heads, op.q);
  project(op.wk, op.kv_heads, k);
  project(op.wv, op.kv_heads, v);
  if (status == QF_OK) status = rotate(device, op, op.heads, op.q);
  if (status == QF_OK) status = rotate(device, op, op.kv_heads, k);
  if (status != QF_OK) return status;
  const QfKvAppend append = {k,           v,        op.k_cache, op.v_cache, op.slot_mapping, op.m,          op.kv_heads,
                             op.head_dim, kv_width, kv_width,   op.slots,   op.dtype,        op.cache_dtype};
  return kv_append(device, &append);
}

}  // namespace qformer::cuda
