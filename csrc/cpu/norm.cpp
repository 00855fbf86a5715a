// Layer norm and RMS norm over the last axis. Rows are the jobs; a row's sums have one fixed order.
// Traffic: a row is read from memory once (later passes hit L1) and written once; weight and bias stay in cache.
// Source: Ba et al. 2016 (layer norm); Zhang and Sennrich 2019 (RMS norm).

#include "families.h"
#include "kernels.h"
#include "thread_pool.h"

namespace qformer::cpu {

QfStatus layer_norm(int32_t, const QfLayerNorm* args) {
  const auto& a = *args;
  if (a.cols == 0) return QF_OK;
  const auto kernel = kernels().norm.layer_norm_row;
  parallel_for(a.rows, grain_for(0.5 * static_cast<double>(a.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel(a.x + row * a.ldx, a.weight, a.bias, a.y + row * a.cols, a.cols, a.eps);
    }
  });
  return QF_OK;
}

QfStatus rms_norm(int32_t, const QfRmsNorm* args) {
  const auto& a = *args;
  if (a.cols == 0) return QF_OK;
  const auto kernel = kernels().norm.rms_norm_row;
  parallel_for(a.rows, grain_for(0.4 * static_cast<double>(a.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernel(a.x + row * a.ldx, a.weight, a.y + row * a.cols, a.cols, a.eps);
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
