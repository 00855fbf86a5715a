// Rows picked by id: embedding and gather (with conversion), scatter.
// Ids are known only here, so they are all checked before the first row is written: a bad id leaves the output
// untouched. Traffic: each row read once and written once; the copy is a memcpy, a conversion the ISA's
// kernel.

#include <cstring>

#include "backend/dtype.h"
#include "error.h"
#include "families.h"
#include "kernels.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

QfStatus check_ids(const char* op, const int32_t* ids, int64_t tokens, int64_t rows) {
  for (int64_t t = 0; t < tokens; ++t) {
    if (ids[t] >= 0 && ids[t] < rows) continue;
    return fail(QF_INVALID_ARGUMENT, "%s: id %d at index %lld is outside [0, %lld)", op, ids[t],
                static_cast<long long>(t), static_cast<long long>(rows));
  }
  return QF_OK;
}

int64_t row_grain(int64_t bytes) { return grain_for(0.1 * static_cast<double>(bytes)); }

}  // namespace

QfStatus gather_rows(int32_t, const QfGatherRows* args) {
  const auto& a = *args;
  if (const QfStatus status = check_ids("gatherRows", a.ids, a.tokens, a.rows); status != QF_OK) return status;
  const size_t in_size = qf_dtype_size(a.dtype), out_size = qf_dtype_size(a.out_dtype);
  const auto* table = static_cast<const char*>(a.table);
  auto* y = static_cast<char*>(a.y);
  const bool same = a.dtype == a.out_dtype;
  parallel_for(a.tokens, row_grain(a.cols * static_cast<int64_t>(in_size + out_size)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const char* row = table + static_cast<int64_t>(a.ids[t]) * a.ld * static_cast<int64_t>(in_size);
      char* out = y + t * a.cols * static_cast<int64_t>(out_size);
      if (same) {
        std::memcpy(out, row, static_cast<size_t>(a.cols) * in_size);
      } else {
        kernels().elementwise.convert(row, a.dtype, out, a.out_dtype, a.cols);
      }
    }
  });
  return QF_OK;
}

QfStatus scatter_rows(int32_t, const QfScatterRows* args) {
  const auto& a = *args;
  if (const QfStatus status = check_ids("scatterRows", a.ids, a.tokens, a.rows); status != QF_OK) return status;
  const auto size = static_cast<int64_t>(qf_dtype_size(a.dtype));
  auto* dst = static_cast<char*>(a.dst);
  const auto* src = static_cast<const char*>(a.src);
  parallel_for(a.tokens, row_grain(a.cols * size * 2), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::memcpy(dst + a.ids[t] * a.ldd * size, src + t * a.lds * size, static_cast<size_t>(a.cols * size));
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
