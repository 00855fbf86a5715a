// Layer norm and RMS norm over the last axis. Rows are the jobs; a row's sums have one fixed order.
// Traffic: a row is read from memory once (later passes hit L1) and written once; weight and bias stay in cache.
// Source: Ba et al. 2016 (layer norm); Zhang and Sennrich 2019 (RMS norm).

#include "norm.h"

#include "families.h"
#include "kernels.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {

QfStatus layer_norm(int32_t, const QfLayerNorm* args) {
  const auto& a = *args;
  if (a.cols == 0) return QF_OK;
  const auto* x = static_cast<const float*>(a.x);
  auto* y = static_cast<float*>(a.y);
  const auto kernel = kernels().norm.layer_norm_row;
  parallel_for(a.rows, grain_for(0.5 * static_cast<double>(a.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel(x + row * a.ldx, a.weight, a.bias, y + row * a.cols, a.cols, a.eps);
    }
  });
  return QF_OK;
}

QfStatus rms_norm(int32_t, const QfRmsNorm* args) {
  const auto& a = *args;
  if (a.cols == 0) return QF_OK;
  const auto* x = static_cast<const float*>(a.x);
  auto* y = static_cast<float*>(a.y);
  const auto kernel = kernels().norm.rms_norm_row;
  parallel_for(a.rows, grain_for(0.4 * static_cast<double>(a.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel(x + row * a.ldx, a.weight, y + row * a.cols, a.cols, a.eps);
    }
  });
  return QF_OK;
}

FloatRows normed_rows(const void* x, const float* norm_weight, int64_t m, int64_t k, int64_t ldx, float eps) {
  if (norm_weight == nullptr) return {static_cast<const float*>(x), ldx};
  auto* y = static_cast<float*>(thread_scratch(Scratch::kNormedX, static_cast<size_t>(m * k) * sizeof(float)));
  const QfRmsNorm norm{
      .x = x, .weight = norm_weight, .y = y, .rows = m, .cols = k, .ldx = ldx, .eps = eps, .dtype = QF_F32};
  rms_norm(0, &norm);
  return {y, k};
}

}  // namespace qformer::cpu
