// simd.h for any machine: 4 lanes of the compiler's generic vector type, no fused multiply-add. Also the reference for
// the others.
#pragma once

#include <math.h>

#include "half.h"

namespace qformer::cpu::QF_ISA {

typedef float Lanes __attribute__((vector_size(16)));
typedef int32_t IntLanes __attribute__((vector_size(16)));

struct Vf {
  Lanes v;
};
struct Vm {
  IntLanes m;
};
constexpr int kLanes = 4;
constexpr int kRegisters = 16;

inline Vf zero() { return {Lanes{0, 0, 0, 0}}; }
inline Vf broadcast(float x) { return {Lanes{x, x, x, x}}; }
inline Vf load(const float* p) {
  Vf a;
  memcpy(&a.v, p, sizeof(a.v));
  return a;
}
inline Vf repeat_4(const float* p) { return load(p); }
inline void store(float* p, Vf a) { memcpy(p, &a.v, sizeof(a.v)); }
inline Vf load_partial(const float* p, int64_t n) {
  Vf a = zero();
  for (int64_t i = 0; i < n; i++) a.v[i] = p[i];
  return a;
}
inline void store_partial(float* p, Vf a, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = a.v[i];
}

inline Vf operator+(Vf a, Vf b) { return {a.v + b.v}; }
inline Vf operator-(Vf a, Vf b) { return {a.v - b.v}; }
inline Vf operator*(Vf a, Vf b) { return {a.v * b.v}; }
inline Vf operator/(Vf a, Vf b) { return {a.v / b.v}; }
inline Vf fma(Vf a, Vf b, Vf c) { return {a.v * b.v + c.v}; }
inline Vf fnma(Vf a, Vf b, Vf c) { return {c.v - a.v * b.v}; }
inline Vf vmax(Vf a, Vf b) { return {a.v > b.v ? a.v : b.v}; }
inline Vf vmin(Vf a, Vf b) { return {a.v < b.v ? a.v : b.v}; }
inline Vf vabs(Vf a) { return {(Lanes)((IntLanes)a.v & 0x7fffffff)}; }
inline Vf sqrt(Vf a) {
  for (int i = 0; i < kLanes; i++) a.v[i] = sqrtf(a.v[i]);
  return a;
}
inline Vf round_even(Vf a) {
  for (int i = 0; i < kLanes; i++) a.v[i] = nearbyintf(a.v[i]);
  return a;
}
inline Vf pow2(Vf a) { return {(Lanes)((__builtin_convertvector(a.v, IntLanes) + 127) << 23)}; }

inline Vm less(Vf a, Vf b) { return {a.v < b.v}; }
inline Vm is_nan(Vf a) { return {a.v != a.v}; }
inline Vf select(Vm m, Vf a, Vf b) { return {m.m ? a.v : b.v}; }

inline Vf load_f16_partial(const uint16_t* p, int64_t n) {
  Vf a = zero();
  for (int64_t i = 0; i < n; i++) a.v[i] = f16_to_float(p[i]);
  return a;
}
inline Vf load_bf16_partial(const uint16_t* p, int64_t n) {
  Vf a = zero();
  for (int64_t i = 0; i < n; i++) a.v[i] = bf16_to_float(p[i]);
  return a;
}
inline void store_f16_partial(uint16_t* p, Vf a, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = float_to_f16(a.v[i]);
}
inline void store_bf16_partial(uint16_t* p, Vf a, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = float_to_bf16(a.v[i]);
}
inline Vf load_f16(const uint16_t* p) { return load_f16_partial(p, kLanes); }
inline Vf load_bf16(const uint16_t* p) { return load_bf16_partial(p, kLanes); }
inline void store_f16(uint16_t* p, Vf a) { store_f16_partial(p, a, kLanes); }
inline void store_bf16(uint16_t* p, Vf a) { store_bf16_partial(p, a, kLanes); }

// Quantised weights, see simd.h.
inline void store_i8(int8_t* p, Vf a) {
  for (int i = 0; i < kLanes; i++) p[i] = static_cast<int8_t>(a.v[i]);
}

inline float reduce_add(Vf a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
inline Vf add_groups(Vf a, Vf b, Vf c, Vf d) {
  const float sums[kLanes] = {reduce_add(a), reduce_add(b), reduce_add(c), reduce_add(d)};
  return load(sums);
}
inline float reduce_max(Vf a) {
  const float low = a.v[0] > a.v[2] ? a.v[0] : a.v[2];
  const float high = a.v[1] > a.v[3] ? a.v[1] : a.v[3];
  return low > high ? low : high;
}

}  // namespace qformer::cpu::QF_ISA
