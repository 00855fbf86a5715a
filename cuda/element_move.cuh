// Elements moved from one place to another: as they are (raw words of their size, so that every bit pattern survives),
// or converted between f32, f16 and bf16 with one rounding.
//
// visit_move picks the pair of types once on the host: callers are templates over Move<From, To>.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "row_chunks.cuh"
#include "runtime/error.h"

namespace qformer::cuda {

template <class FromType, class ToType>
struct Move {
  using From = FromType;
  using To = ToType;

  QF_DEVICE static To element(From x) {
    if constexpr (std::is_same_v<From, To>) {
      return x;
    } else {
      return from_float<To>(to_float(x));
    }
  }

  // dst[i, i + 8) = src[i, i + 8), nothing past `cols`
  QF_DEVICE static void chunk(Global<const From> src, bool wide_src, Global<To> dst, bool wide_dst, int64_t i,
                              int64_t cols) {
    if constexpr (!std::is_same_v<From, To>) {
      float v[kChunk];
      load_chunk(src, i, cols, wide_src, v);
      store_chunk(dst, i, cols, wide_dst, v);
    } else if (wide_src && wide_dst && i + kChunk <= cols) {
      constexpr int kPart = sizeof(From) == 1 ? 8 : 16 / sizeof(From);
#pragma unroll
      for (int part = 0; part < kChunk; part += kPart) {
        dst.template store_vec<kPart>(i + part, src.template load_vec<kPart>(i + part));
      }
    } else {
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        if (i + j < cols) dst.store(i + j, src.load(i + j));
      }
    }
  }
};

// Calls visit(Move<Word, Word>()) for elements of a dtype moved as they are.
template <class Visit>
QfStatus visit_raw_move(int32_t dtype, const Visit& visit) {
  switch (qf_dtype_size(dtype)) {
    case 4:
      return visit(Move<uint32_t, uint32_t>());
    case 2:
      return visit(Move<uint16_t, uint16_t>());
    default:
      return visit(Move<uint8_t, uint8_t>());
  }
}

// Calls visit(Move<From, To>()) for the pair of dtypes; QF_UNSUPPORTED for a pair that does not convert.
template <class Visit>
QfStatus visit_move(const char* op, int32_t from, int32_t to, const Visit& visit) {
  if (from == to) return visit_raw_move(from, visit);
  if (from == QF_F32 && to == QF_F16) return visit(Move<float, Half>());
  if (from == QF_F32 && to == QF_BF16) return visit(Move<float, BFloat16>());
  if (from == QF_F16 && to == QF_F32) return visit(Move<Half, float>());
  if (from == QF_F16 && to == QF_BF16) return visit(Move<Half, BFloat16>());
  if (from == QF_BF16 && to == QF_F32) return visit(Move<BFloat16, float>());
  if (from == QF_BF16 && to == QF_F16) return visit(Move<BFloat16, Half>());
  return fail(QF_UNSUPPORTED, "%s: cannot convert %s to %s", op, qf_dtype_name(from), qf_dtype_name(to));
}

}  // namespace qformer::cuda
