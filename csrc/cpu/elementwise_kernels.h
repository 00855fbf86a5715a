// Per-ISA part of the elementwise family: one dense run of a binary op, of an activation with scale and shift, and of a
// conversion between float types. Memory-bound: every element is loaded once and stored once.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

template <int32_t Op>
inline Vf apply_binary(Vf a, Vf b) {
  if constexpr (Op == QF_ADD) return a + b;
  if constexpr (Op == QF_SUB) return a - b;
  if constexpr (Op == QF_MUL) return a * b;
  return a / b;
}

template <int32_t Op>
inline void binary_run(const float* a, const float* b, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, apply_binary<Op>(load(a + i), load(b + i)));
  const int64_t rest = n - i;
  if (rest > 0) store_partial(y + i, apply_binary<Op>(load_partial(a + i, rest), load_partial(b + i, rest)), rest);
}

inline void binary(const float* a, const float* b, float* y, int64_t n, int32_t op) {
  switch (op) {
    case QF_ADD:
      return binary_run<QF_ADD>(a, b, y, n);
    case QF_SUB:
      return binary_run<QF_SUB>(a, b, y, n);
    case QF_MUL:
      return binary_run<QF_MUL>(a, b, y, n);
    default:
      return binary_run<QF_DIV>(a, b, y, n);
  }
}

inline void unary(const float* x, float* y, int64_t n, int32_t activation, float scale, float shift) {
  const Vf factor = broadcast(scale), offset = broadcast(shift);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, activate(load(x + i), activation) * factor + offset);
  const int64_t rest = n - i;
  if (rest > 0) store_partial(y + i, activate(load_partial(x + i, rest), activation) * factor + offset, rest);
}

inline Vf load_as_f32(const void* p, int64_t i, int32_t dtype) {
  if (dtype == QF_F32) return load(static_cast<const float*>(p) + i);
  const uint16_t* half = static_cast<const uint16_t*>(p) + i;
  return dtype == QF_F16 ? load_f16(half) : load_bf16(half);
}

inline Vf load_as_f32_partial(const void* p, int64_t i, int64_t n, int32_t dtype) {
  if (dtype == QF_F32) return load_partial(static_cast<const float*>(p) + i, n);
  const uint16_t* half = static_cast<const uint16_t*>(p) + i;
  return dtype == QF_F16 ? load_f16_partial(half, n) : load_bf16_partial(half, n);
}

inline void store_from_f32(void* p, int64_t i, Vf value, int32_t dtype) {
  if (dtype == QF_F32) return store(static_cast<float*>(p) + i, value);
  uint16_t* half = static_cast<uint16_t*>(p) + i;
  dtype == QF_F16 ? store_f16(half, value) : store_bf16(half, value);
}

inline void store_from_f32_partial(void* p, int64_t i, Vf value, int64_t n, int32_t dtype) {
  if (dtype == QF_F32) return store_partial(static_cast<float*>(p) + i, value, n);
  uint16_t* half = static_cast<uint16_t*>(p) + i;
  dtype == QF_F16 ? store_f16_partial(half, value, n) : store_bf16_partial(half, value, n);
}

inline void convert(const void* x, int32_t x_dtype, void* y, int32_t y_dtype, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_from_f32(y, i, load_as_f32(x, i, x_dtype), y_dtype);
  if (i < n) store_from_f32_partial(y, i, load_as_f32_partial(x, i, n - i, x_dtype), n - i, y_dtype);
}

constexpr ElementwiseKernels kElementwiseKernels = {&binary, &unary, &convert};

}  // namespace qformer::cpu::QF_ISA
