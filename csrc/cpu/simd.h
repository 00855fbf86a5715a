// The vector type kernels are written in: Vf, the instruction set's widest f32 vector, with kLanes lanes.
//
// Included only by translation units in isa/, which define QF_ISA (a namespace name) and one of
// QF_ISA_{SCALAR,AVX2,AVX512,NEON}. Everything lives in qformer::cpu::QF_ISA, so the same kernel source compiled twice
// never shares a symbol. For the same reason kernel code uses no standard-library templates: their instances would be
// shared, whatever instruction set compiled them.
//
// Each instruction set gives kLanes, kRegisters (vector registers) and (all loads and stores unaligned; *_partial touch
// n elements only, 0 <= n <= kLanes, and fill with 0):
//   zero() broadcast(f) load(p) load_partial(p, n) store(p, v) store_partial(p, v, n)
//   load_f16(p) load_bf16(p) store_f16(p, v) store_bf16(p, v) and their _partial forms, p a uint16_t*; stores round to
//   nearest even a + b, a - b, a * b, a / b; fma(a, b, c) = a*b + c, fnma(a, b, c) = c -
//   a*b (one rounding but for scalar) vmax(a, b) vmin(a, b): b where either is NaN (NEON: NaN); vabs sqrt round_even
//   pow2(v): 2^v for whole v in
//   [-126, 127] less(a, b) → Vm, is_nan(a) → Vm, select(m, a, b) = m ? a : b reduce_add(v): fixed tree, lanes i and i +
//   L/2 first; reduce_max(v) (NaN unspecified)
// store_i8(p, v): whole numbers of [-128, 127] as bytes. simd_int16.h has the integers.
// simd_math.h adds exp, log, erf, tanh and the activations.
#pragma once

#include <stdint.h>

#if defined(QF_ISA_AVX512)
#include "simd_avx512.h"
#elif defined(QF_ISA_AVX2)
#include "simd_avx2.h"
#elif defined(QF_ISA_NEON)
#include "simd_neon.h"
#else
#include "simd_scalar.h"
#endif

#include "simd_math.h"
