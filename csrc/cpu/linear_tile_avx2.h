// The loop of a register tile of linear_panel.h for 16 registers, in assembly: 12 sums, three groups of x and a vector
// of w fill them all. GCC 12 spills sums instead, and the multiply-adds wait for their way through memory. Nothing else
// is in the loop: the threads of a core share what decodes instructions. On a Zen 3 whose other threads were probably
// lent to others, a loop of multiply-adds alone had 94 GFLOP/s, with as many additions of integers 79, both 98 at best.
#pragma once

#include "fetcher.h"
#include "linear_dot.h"

namespace qformer::cpu::QF_ISA {

// clang-format off

// A vector of w times three rows.
#define QF_MULTIPLY_VECTOR(g, v, a, b, c)           \
  "vmovups 128*" #g "+32*" #v "(%[w]), %%ymm15\n\t" \
  "vfmadd231ps %%ymm15, %%ymm12, %[" #a "]\n\t"     \
  "vfmadd231ps %%ymm15, %%ymm13, %[" #b "]\n\t"     \
  "vfmadd231ps %%ymm15, %%ymm14, %[" #c "]\n\t"

#define QF_MULTIPLY_GROUP(g)                       \
  "vbroadcastf128 48*" #g "(%[x]), %%ymm12\n\t"    \
  "vbroadcastf128 48*" #g "+16(%[x]), %%ymm13\n\t" \
  "vbroadcastf128 48*" #g "+32(%[x]), %%ymm14\n\t" \
  QF_MULTIPLY_VECTOR(g, 0, s00, s10, s20)          \
  QF_MULTIPLY_VECTOR(g, 1, s01, s11, s21)          \
  QF_MULTIPLY_VECTOR(g, 2, s02, s12, s22)          \
  QF_MULTIPLY_VECTOR(g, 3, s03, s13, s23)

// clang-format on

// Adds the products of an even number of groups, packed: sum[m][v] += group of row m, repeated, * vector v.
inline __attribute__((always_inline)) void multiply_groups(Vf (&sum)[3][4], const float* x, const float* w,
                                                           int64_t groups) {
  asm volatile(
      "sub $4, %[groups]\n\t"
      "jl 2f\n\t"
      "1:\n\t"
      QF_MULTIPLY_GROUP(0) QF_MULTIPLY_GROUP(1) QF_MULTIPLY_GROUP(2) QF_MULTIPLY_GROUP(3)
      "add $192, %[x]\n\t"
      "add $512, %[w]\n\t"
      "sub $4, %[groups]\n\t"
      "jge 1b\n\t"
      "2:\n\t"
      "cmp $-4, %[groups]\n\t"
      "je 3f\n\t"
      QF_MULTIPLY_GROUP(0) QF_MULTIPLY_GROUP(1)
      "3:\n\t"
      : [s00] "+x"(sum[0][0].v), [s01] "+x"(sum[0][1].v), [s02] "+x"(sum[0][2].v), [s03] "+x"(sum[0][3].v),
        [s10] "+x"(sum[1][0].v), [s11] "+x"(sum[1][1].v), [s12] "+x"(sum[1][2].v), [s13] "+x"(sum[1][3].v),
        [s20] "+x"(sum[2][0].v), [s21] "+x"(sum[2][1].v), [s22] "+x"(sum[2][2].v), [s23] "+x"(sum[2][3].v),
        [x] "+r"(x), [w] "+r"(w), [groups] "+r"(groups)
      :
      : "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
}

#undef QF_MULTIPLY_GROUP
#undef QF_MULTIPLY_VECTOR

// panel_tile of linear_panel.h, of three packed rows.
inline void panel_tile_avx2(const float* x, const float* w, int64_t groups, bool first, float* sums, int64_t ld_sums,
                            SpreadFetcher& fetcher) {
  constexpr int kRows = 3, kVectors = 4;
  constexpr int64_t kTogether = 2 * kColumns;  // groups, while something is fetched
  Fetcher all = fetcher.all;
  const int64_t lines = fetcher.lines;
  Vf sum[kRows][kVectors];
#pragma GCC unroll 3
  for (int m = 0; m < kRows; m++) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) sum[m][v] = zero();
  }
  int64_t s = 0;
  for (; s < groups && !all.done(); s += kTogether) {
    all.fetch(2 * lines);
    multiply_groups(sum, x + s * 4 * kRows, w + s * kVectors * kLanes, smaller(kTogether, groups - s));
  }
  if (s < groups) multiply_groups(sum, x + s * 4 * kRows, w + s * kVectors * kLanes, groups - s);
#pragma GCC unroll 3
  for (int m = 0; m < kRows; m++, sums += ld_sums) {
    const Vf block = add_lanes<kVectors>(sum[m]);
    store(sums, first ? block : load(sums) + block);
  }
  fetcher.all = all;
}

}  // namespace qformer::cpu::QF_ISA
