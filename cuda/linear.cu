// The ops linear and gated_linear, over the products of gemm.h.
//
// The norm of the rows, where one is asked for, is that of the op rms_norm, rounded to dtype: of a few rows inside the
// product, which spares a decode step its launch; else before it into scratch, because every block of a product reads
// the rows again.
#include "entry.h"
#include "gemm.h"

namespace qformer::cuda {
namespace {

constexpr size_t kScratchAlignment = 256;

// Runs a product whose rows are normalised first where it has a norm_weight: by the kernel, or into the head of the
// op's scratch.
QfStatus run_normed(int32_t device, const char* name, GemmArgs args, int32_t dtype, int32_t w_dtype) {
  DeviceContext& context = context_of(device);
  void* workspace = nullptr;
  size_t normed_bytes = 0;
  QfRmsNorm rms{};
  const bool apart = args.norm_weight != nullptr && !gemm_normalises(context, args, dtype);
  if (apart) {
    normed_bytes = static_cast<size_t>(args.m) * static_cast<size_t>(args.k) * qf_dtype_size(dtype);
    normed_bytes = (normed_bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
    rms = {args.x, args.norm_weight, nullptr, args.m, args.k, args.ldx, args.norm_eps, dtype};
    args.norm_weight = nullptr;
    args.ldx = args.k;
    args.x = nullptr;  // stands for the scratch, which is aligned as well
  }
  const size_t bytes = normed_bytes + gemm_workspace(context, args, dtype);
  if (bytes > 0) {
    if (const QfStatus status = context.scratch(bytes, &workspace); status != QF_OK) return status;
  }
  if (apart) {
    rms.y = workspace;
    args.x = workspace;
    if (const QfStatus status = rms_norm(device, &rms); status != QF_OK) return status;
  }
  return run_gemm(context, name, args, dtype, w_dtype, static_cast<char*>(workspace) + normed_bytes);
}

}  // namespace

QfStatus linear(int32_t device, const QfLinear* args) {
  if (args->m <= 0 || args->n <= 0) return QF_OK;
  if (const QfStatus status = check_gemm_sizes("linear", args->m, args->n, args->k); status != QF_OK) return status;
  GemmArgs gemm{};
  gemm.x = args->x;
  gemm.w = args->w;
  gemm.bias = args->bias;
  gemm.residual = args->residual;
  gemm.norm_weight = args->norm_weight;
  gemm.y = args->y;
  gemm.ldx = args->ldx;
  gemm.ldw = args->ldw;
  gemm.ldr = args->ldr;
  gemm.ldy = args->ldy;
  gemm.m = static_cast<int32_t>(args->m);
  gemm.n = static_cast<int32_t>(args->n);
  gemm.k = static_cast<int32_t>(args->k);
  gemm.activation = args->activation;
  gemm.norm_eps = args->norm_eps;
  gemm.y_f32 = gemm.residual_f32 = args->y_dtype == QF_F32;
  gemm.round_x_to_bf16 = args->math == QF_MATH_BF16 && args->w_dtype == QF_BF16;
  return run_normed(device, "linear", gemm, args->dtype, args->w_dtype);
}

QfStatus gated_linear(int32_t device, const QfGatedLinear* args) {
  if (args->m <= 0 || args->n <= 0) return QF_OK;
  if (const QfStatus status = check_gemm_sizes("gated_linear", args->m, args->n, args->k); status != QF_OK)
    return status;
  GemmArgs gemm{};
  gemm.x = args->x;
  gemm.w = args->w_gate;
  gemm.w_up = args->w_up;
  gemm.norm_weight = args->norm_weight;
  gemm.y = args->y;
  gemm.ldx = args->ldx;
  gemm.ldw = args->ldw;
  gemm.ldy = args->ldy;
  gemm.m = static_cast<int32_t>(args->m);
  gemm.n = static_cast<int32_t>(args->n);
  gemm.k = static_cast<int32_t>(args->k);
  gemm.activation = args->activation;
  gemm.norm_eps = args->norm_eps;
  gemm.y_f32 = args->dtype == QF_F32;
  gemm.round_x_to_bf16 = args->math == QF_MATH_BF16 && args->w_dtype == QF_BF16;
  return run_normed(device, "gated_linear", gemm, args->dtype, args->w_dtype);
}

}  // namespace qformer::cuda
