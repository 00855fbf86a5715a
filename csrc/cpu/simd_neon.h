// simd.h for 64-bit ARM: 4 lanes. bf16 is converted by integer arithmetic, f16 by the base architecture's instructions.
#pragma once

#include <arm_neon.h>

#include "half.h"

namespace qformer::cpu::QF_ISA {

struct Vf {
  float32x4_t v;
};
struct Vm {
  uint32x4_t m;
};
constexpr int kLanes = 4;
constexpr int kRegisters = 32;

inline Vf zero() { return {vdupq_n_f32(0)}; }
inline Vf broadcast(float x) { return {vdupq_n_f32(x)}; }
inline Vf load(const float* p) { return {vld1q_f32(p)}; }
inline Vf repeat_4(const float* p) { return load(p); }
inline void store(float* p, Vf a) { vst1q_f32(p, a.v); }
inline Vf load_partial(const float* p, int64_t n) {
  float buffer[4] = {};
  for (int64_t i = 0; i < n; i++) buffer[i] = p[i];
  return load(buffer);
}
inline void store_partial(float* p, Vf a, int64_t n) {
  float buffer[4];
  store(buffer, a);
  for (int64_t i = 0; i < n; i++) p[i] = buffer[i];
}

inline Vf operator+(Vf a, Vf b) { return {vaddq_f32(a.v, b.v)}; }
inline Vf operator-(Vf a, Vf b) { return {vsubq_f32(a.v, b.v)}; }
inline Vf operator*(Vf a, Vf b) { return {vmulq_f32(a.v, b.v)}; }
inline Vf operator/(Vf a, Vf b) { return {vdivq_f32(a.v, b.v)}; }
inline Vf fma(Vf a, Vf b, Vf c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vf fnma(Vf a, Vf b, Vf c) { return {vfmsq_f32(c.v, a.v, b.v)}; }
inline Vf vmax(Vf a, Vf b) { return {vmaxq_f32(a.v, b.v)}; }
inline Vf vmin(Vf a, Vf b) { return {vminq_f32(a.v, b.v)}; }
inline Vf vabs(Vf a) { return {vabsq_f32(a.v)}; }
inline Vf sqrt(Vf a) { return {vsqrtq_f32(a.v)}; }
inline Vf round_even(Vf a) { return {vrndnq_f32(a.v)}; }
inline Vf pow2(Vf a) {
  return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(a.v), vdupq_n_s32(127)), 23))};
}

inline Vm less(Vf a, Vf b) { return {vcltq_f32(a.v, b.v)}; }
inline Vm is_nan(Vf a) { return {vmvnq_u32(vceqq_f32(a.v, a.v))}; }
inline Vf select(Vm m, Vf a, Vf b) { return {vbslq_f32(m.m, a.v, b.v)}; }

inline Vf from_f16(uint16x4_t bits) { return {vcvt_f32_f16(vreinterpret_f16_u16(bits))}; }
inline Vf from_bf16(uint16x4_t bits) { return {vreinterpretq_f32_u32(vshll_n_u16(bits, 16))}; }
inline uint16x4_t to_f16(Vf a) { return vreinterpret_u16_f16(vcvt_f16_f32(a.v)); }

// NaN becomes a quiet NaN.
inline uint16x4_t to_bf16(Vf a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(is_nan(a).m, quiet, rounded), 16);
}

inline uint16x4_t load_u16(const uint16_t* p, int64_t n) {
  if (n == kLanes) return vld1_u16(p);
  uint16_t buffer[4] = {};
  for (int64_t i = 0; i < n; i++) buffer[i] = p[i];
  return vld1_u16(buffer);
}
inline void store_u16(uint16_t* p, uint16x4_t bits, int64_t n) {
  uint16_t buffer[4];
  vst1_u16(buffer, bits);
  for (int64_t i = 0; i < n; i++) p[i] = buffer[i];
}

inline Vf load_f16(const uint16_t* p) { return from_f16(vld1_u16(p)); }
inline Vf load_bf16(const uint16_t* p) { return from_bf16(vld1_u16(p)); }
inline Vf load_f16_partial(const uint16_t* p, int64_t n) { return from_f16(load_u16(p, n)); }
inline Vf load_bf16_partial(const uint16_t* p, int64_t n) { return from_bf16(load_u16(p, n)); }
inline void store_f16(uint16_t* p, Vf a) { vst1_u16(p, to_f16(a)); }
inline void store_bf16(uint16_t* p, Vf a) { vst1_u16(p, to_bf16(a)); }
inline void store_f16_partial(uint16_t* p, Vf a, int64_t n) { store_u16(p, to_f16(a), n); }
inline void store_bf16_partial(uint16_t* p, Vf a, int64_t n) { store_u16(p, to_bf16(a), n); }

// Quantised weights, see simd.h.
inline void store_i8(int8_t* p, Vf a) {
  const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(a.v));
  int8_t buffer[8];
  vst1_s8(buffer, vmovn_s16(vcombine_s16(words, words)));
  memcpy(p, buffer, 4);
}

inline float reduce_add(Vf a) {
  const float32x2_t two = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline Vf add_groups(Vf a, Vf b, Vf c, Vf d) {
  const float32x4_t ab = vaddq_f32(vcombine_f32(vget_low_f32(a.v), vget_low_f32(b.v)),
                                   vcombine_f32(vget_high_f32(a.v), vget_high_f32(b.v)));
  const float32x4_t cd = vaddq_f32(vcombine_f32(vget_low_f32(c.v), vget_low_f32(d.v)),
                                   vcombine_f32(vget_high_f32(c.v), vget_high_f32(d.v)));
  return {vpaddq_f32(ab, cd)};
}
inline float reduce_max(Vf a) { return vmaxvq_f32(a.v); }

}  // namespace qformer::cpu::QF_ISA
