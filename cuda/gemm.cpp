#include "gemm.h"

#include <algorithm>

#include "decode.h"
#include "gemm_f32.h"
#include "gemm_plan.h"

namespace qformer::cuda {

namespace {

constexpr int kBf16ComputeCapability = 80;

bool takes_vectors(const void* p, int64_t ld, bool f32) {
  const int64_t size = f32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld * size % 16 == 0;
}

GemmDevice device_of(const DeviceContext& context) {
  return {context.multiprocessors, context.shared_memory_per_block_optin};
}

QfStatus check_limits(const char* name, const GemmArgs& args) {
  constexpr int64_t kMaxStride = (int64_t{1} << 31) / 256;  // offsets inside a tile of 256 rows are 32 bits
  if (args.ldx < kMaxStride && args.ldw < kMaxStride) return QF_OK;
  return fail(QF_UNSUPPORTED, "%s: rows are %lld and %lld elements apart, at most %lld are supported", name,
              static_cast<long long>(args.ldx), static_cast<long long>(args.ldw),
              static_cast<long long>(kMaxStride - 1));
}

}  // namespace

QfStatus check_gemm_sizes(const char* name, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kMax = (int64_t{1} << 31) - 512;  // tiles overhang
  if (m <= kMax && n <= kMax && k <= kMax) return QF_OK;
  return fail(QF_UNSUPPORTED, "%s: [%lld, %lld] x [%lld, %lld] is too large, no size may exceed %lld", name,
              static_cast<long long>(m), static_cast<long long>(k), static_cast<long long>(n),
              static_cast<long long>(k), static_cast<long long>(kMax));
}

bool gemm_normalises(const DeviceContext& context, const GemmArgs& args, int32_t dtype) {
  return decode_normalises(context, args, dtype);
}

size_t gemm_workspace(const DeviceContext& context, const GemmArgs& args, int32_t dtype) {
  if (dtype == QF_F32 || args.m <= 0 || args.n <= 0 || decode_serves(args, dtype)) return 0;
  return plan_gemm(device_of(context), args).partials_bytes;
}

QfStatus prepare_gemm(const DeviceContext& context, const char* name, GemmArgs* args, int32_t dtype) {
  if (const QfStatus status = check_limits(name, *args); status != QF_OK) return status;
  args->y_vectors = takes_vectors(args->y, args->ldy, args->y_f32 != 0);
  args->bias_vectors = takes_vectors(args->bias, 0, true);
  args->residual_vectors = takes_vectors(args->residual, args->ldr, args->residual_f32 != 0);
  if (dtype == QF_BF16 && context.compute_capability < kBf16ComputeCapability) {
    return fail(QF_UNSUPPORTED, "%s: dtype bf16 needs compute capability %d.%d, this device has %d.%d", name,
                kBf16ComputeCapability / 10, kBf16ComputeCapability % 10, context.compute_capability / 10,
                context.compute_capability % 10);
  }
  return QF_OK;
}

QfStatus run_gemm(DeviceContext& context, const char* name, GemmArgs args, int32_t dtype, int32_t w_dtype,
                  void* workspace) {
  if (args.m <= 0 || args.n <= 0) return QF_OK;
  if (const QfStatus status = prepare_gemm(context, name, &args, dtype); status != QF_OK) return status;
  if (dtype == QF_F32) return launch_gemm_f32(context, name, args, w_dtype);
  if (decode_serves(args, dtype)) return run_decode(context, name, args, dtype);
  const GemmPlan plan = plan_gemm(device_of(context), args);
  args.tiles_m = plan.tiles_m;
  args.tiles_n = plan.tiles_n;
  args.k_chunk = plan.k_chunk;
  args.stages = plan.stages;
  if (plan.chunks > 1) {
    args.partials = static_cast<float*>(workspace);
    int32_t* tickets = nullptr;
    const size_t count = static_cast<size_t>(plan.tiles_m) * static_cast<size_t>(plan.tiles_n);
    if (const QfStatus status = context.counters(count, &tickets); status != QF_OK) return status;
    args.tickets = reinterpret_cast<uint32_t*>(tickets);
  }
  return dtype == QF_F16 ? launch_gemm_f16(context, name, args, plan) : launch_gemm_bf16(context, name, args, plan);
}

}  // namespace qformer::cuda
