// Softmax and log-softmax over the last axis. Rows are the jobs; a row's sum has one fixed order.
// Traffic: a row is read from memory once (further passes hit the cache) and written once.

#include "families.h"
#include "kernels.h"
#include "thread_pool.h"

namespace qformer::cpu {

QfStatus softmax(int32_t, const QfSoftmax* args) {
  const auto& a = *args;
  const auto kernel = kernels().softmax.softmax_row;
  parallel_for(a.rows, grain_for(1.5 * static_cast<double>(a.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) kernel(a.x + row * a.ldx, a.y + row * a.cols, a.cols, a.log);
  });
  return QF_OK;
}

}  // namespace qformer::cpu
