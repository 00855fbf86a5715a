// The inner loop of every linear op: dot products of M rows of x with N rows of w, vector lanes running along k.
//
// Canonical order of one output element: lane j of one accumulator takes k = j, j + L, j + 2L, ... (pairs of k for bf16
// dot products), the tail comes zero-filled, then reduce_add's tree. Every kernel keeps exactly this order whatever M,
// N, blocking or packing is, so an element's bits depend on its own row of x and of w only.
#pragma once

#include "simd.h"
#include "transpose.h"

namespace qformer::cpu::QF_ISA {

// How far ahead of its use each stream of weights is fetched. Longer distances lose: with six streams, 4 KiB of each
// nearly fill an L1 of 32 KiB.
constexpr int64_t kPrefetchBytes = 1024;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A step of kLanes rows of w, turned.
template <class Dot>
inline void turn_rows(const typename Dot::W* w, int64_t ldw, Vf (&tile)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i++) tile[i] = Dot::load_w(w + i * ldw);
  transpose(tile);
}

// Operand types: how a step of kStep elements of x and of w is loaded, kLanes of them turned, and one multiply-add of
// such steps. A lane of a step is 32 bits, a float or a pair of bf16. mac_at takes the same lane of x for all of w.
struct DotF32 {
  using X = float;
  using W = float;
  static constexpr int kStep = kLanes;
  static Vf load_x(const X* p) { return load(p); }
  static Vf load_x(const X* p, int64_t n) { return load_partial(p, n); }
  static Vf load_w(const W* p) { return load(p); }
  static Vf load_w(const W* p, int64_t n) { return load_partial(p, n); }
  static void load_turned(const W* w, int64_t ldw, Vf (&tile)[kLanes]) { load_transposed(w, ldw, tile); }
  static Vf mac(Vf sum, Vf x, Vf w) { return fma(x, w, sum); }
  static Vf mac_at(Vf sum, const float* x, Vf w) { return fma_at(x, w, sum); }
};

struct DotF16 : DotF32 {
  using W = uint16_t;
  static Vf load_w(const W* p) { return load_f16(p); }
  static Vf load_w(const W* p, int64_t n) { return load_f16_partial(p, n); }
  static void load_turned(const W* w, int64_t ldw, Vf (&tile)[kLanes]) { turn_rows<DotF16>(w, ldw, tile); }
};

struct DotBf16 : DotF32 {
  using W = uint16_t;
  static Vf load_w(const W* p) { return load_bf16(p); }
  static Vf load_w(const W* p, int64_t n) { return load_bf16_partial(p, n); }
  static void load_turned(const W* w, int64_t ldw, Vf (&tile)[kLanes]) { turn_rows<DotBf16>(w, ldw, tile); }
};

#if defined(QF_ISA_BF16_DOT)
// Both operands bf16: each lane adds the products of a pair of neighbours (vdpbf16ps).
struct DotBf16Pairs {
  using X = uint16_t;
  using W = uint16_t;
  static constexpr int kStep = 2 * kLanes;
  static Vf load_x(const X* p) { return {_mm512_loadu_ps(p)}; }
  static Vf load_x(const X* p, int64_t n) {
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p))};
  }
  static Vf load_w(const W* p) { return load_x(p); }
  static Vf load_w(const W* p, int64_t n) { return load_x(p, n); }
  static void load_turned(const W* w, int64_t ldw, Vf (&tile)[kLanes]) { turn_rows<DotBf16Pairs>(w, ldw, tile); }
  static Vf mac(Vf sum, Vf x, Vf w) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(x.v), reinterpret_cast<__m512bh>(w.v))};
  }
  static Vf mac_at(Vf sum, const float* x, Vf w) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(w.v), "m"(*x));
    return sum;
  }
};
#endif

// Stops the compiler from folding the load into every multiply-add that uses it: load ports are the scarce unit here.
inline __attribute__((always_inline)) Vf in_register(Vf step) {
#if defined(__x86_64__)
  if constexpr (sizeof(Vf) >= 32) asm("" : "+v"(step.v));  // the scalar kernels have no register to hold it in
#endif
  return step;
}

// Adds one step of M x N products. `load_x(m)` and `load_w(n)` give the operands.
template <class Dot, int M, int N, class LoadX, class LoadW>
inline __attribute__((always_inline)) void dot_step(Vf (&sum)[M * N], LoadX load_x, LoadW load_w) {
  // The shorter side waits in registers, the longer one passes through a single register.
  if constexpr (N <= M) {
    Vf w[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) w[n] = in_register(load_w(n));
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
      const Vf x = in_register(load_x(m));
#pragma GCC unroll 16
      for (int n = 0; n < N; n++) sum[m * N + n] = Dot::mac(sum[m * N + n], x, w[n]);
    }
  } else {
    Vf x[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) x[m] = in_register(load_x(m));
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) {
      const Vf w = in_register(load_w(n));
#pragma GCC unroll 16
      for (int m = 0; m < M; m++) sum[m * N + n] = Dot::mac(sum[m * N + n], x[m], w);
    }
  }
}

// Reduces M x N accumulators into sums[m * ld + n * stride].
template <int M, int N>
inline void reduce_tile(const Vf (&sum)[M * N], float* sums, int64_t ld, int64_t stride = 1) {
  constexpr int kFull = M * N / kLanes * kLanes, kRest = M * N - kFull;
  float flat[kFull + kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kFull; i += kLanes) store(flat + i, reduce_add_lanes(sum + i));
  if constexpr (2 * kRest >= kLanes && kRest > 1) {
    Vf rest[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) rest[i] = i < kRest ? sum[kFull + i] : zero();
    store(flat + kFull, reduce_add_lanes(rest));
  } else {
#pragma GCC unroll 16
    for (int i = kFull; i < M * N; i++) flat[i] = reduce_add(sum[i]);
  }
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) sums[m * ld + n * stride] = flat[m * N + n];
  }
}

// sums[m * ld_sums + n * stride] = x row m · w row n * stride, straight from the rows.
template <class Dot, int M, int N>
void dot_rows_tile(const typename Dot::X* x, int64_t ldx, const typename Dot::W* w, int64_t ldw, int64_t stride,
                   int64_t k, float* sums, int64_t ld_sums) {
  using W = typename Dot::W;
  constexpr int64_t kAhead = kPrefetchBytes / static_cast<int64_t>(sizeof(W));
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(W)) / Dot::kStep * Dot::kStep;  // whole steps
  static_assert(kLine > 0);
  Vf sum[M * N];
#pragma GCC unroll 32
  for (int i = 0; i < M * N; i++) sum[i] = zero();
  const int64_t stream = stride * ldw;
  const auto step = [&](int64_t i) __attribute__((always_inline)) {
    dot_step<Dot, M, N>(
        sum, [&](int m) { return Dot::load_x(x + m * ldx + i); },
        [&](int n) { return Dot::load_w(w + n * stream + i); });
  };
  int64_t i = 0;
  for (; i + kLine <= k; i += kLine) {
#pragma GCC unroll 16
    for (int n = 0; n < N; n++) __builtin_prefetch(w + n * stream + i + kAhead, 0, 2);
#pragma GCC unroll 16
    for (int64_t at = 0; at < kLine; at += Dot::kStep) step(i + at);
  }
  for (; i + Dot::kStep <= k; i += Dot::kStep) step(i);
  if (i < k) {
    dot_step<Dot, M, N>(
        sum, [&](int m) { return Dot::load_x(x + m * ldx + i, k - i); },
        [&](int n) { return Dot::load_w(w + n * stream + i, k - i); });
  }
  reduce_tile<M, N>(sum, sums, ld_sums, stride);
}

// The N rows of a tile lie n / N apart, so that the weights are read as N streams, each running through its rows
// without a break. Neighbouring rows would be N streams that start anew every row, where prefetchers lose their stride
// (measured with M = 1 and N = 6: 70 % of read bandwidth at k = 1408 in bf16, 91 % so).
template <class Dot, int M, int N>
void dot_rows_all_n(const typename Dot::X* x, int64_t ldx, const typename Dot::W* w, int64_t ldw, int64_t n, int64_t k,
                    float* sums, int64_t ld_sums) {
  const int64_t stride = n / N;
  int64_t j = 0;
  for (; j < stride; j++) dot_rows_tile<Dot, M, N>(x, ldx, w + j * ldw, ldw, stride, k, sums + j, ld_sums);
  for (j = stride * N; j < n; j++) dot_rows_tile<Dot, M, 1>(x, ldx, w + j * ldw, ldw, 1, k, sums + j, ld_sums);
}

// The widest register tile per number of rows; 16-register machines get narrower ones.
template <int M>
constexpr int columns_for_rows() {
  constexpr int kAccumulators = kRegisters == 32 ? 24 : 12;
  return M == 1 ? 6 : kAccumulators / M < 1 ? 1 : kAccumulators / M > 8 ? 8 : kAccumulators / M;
}

template <class Dot>
void dot_rows_of(const typename Dot::X* x, int64_t ldx, int64_t m, const typename Dot::W* w, int64_t ldw, int64_t n,
                 int64_t k, float* sums, int64_t ld_sums) {
  switch (m) {
#define QF_ROWS(M) \
  case M:          \
    return dot_rows_all_n<Dot, M, columns_for_rows<M>()>(x, ldx, w, ldw, n, k, sums, ld_sums);
    QF_ROWS(1)
    QF_ROWS(2)
    QF_ROWS(3)
    QF_ROWS(4)
    QF_ROWS(5)
    QF_ROWS(6)
    QF_ROWS(7)
    QF_ROWS(8)
#undef QF_ROWS
  }
}

}  // namespace qformer::cpu::QF_ISA
