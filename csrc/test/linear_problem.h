// A linear call of any shape and dtype with random inputs, its result in double precision, and the levels to run it on.
//
// Tolerance: each product is rounded once and a lane has at most k / 4 roundings, the sums of lanes and blocks 8 more
// up to k = 2500, so |error| <= (k / 4 + 8) * 2^-24 * Σ|x·w|; the activations add 4 ulp.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "backend/backend.h"
#include "cpu/cpu_backend.h"
#include "cpu/kernels.h"
#include "levels.h"
#include "test.h"

namespace qformer::linear_test {

using test::kLevels;
using test::on_every_level;
constexpr float kUntouched = -12345.0f;

struct Random {
  uint64_t state;
  float next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
  }
};

inline uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float bf16_value(uint16_t h) {
  const uint32_t bits = uint32_t{h} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// Values in [-1, 1] are multiples of 2^-11 here, so that both conversions are exact.
inline uint16_t f16_bits(float x) {
  if (x == 0) return 0;
  int exponent;
  const float mantissa = std::frexp(std::fabs(x), &exponent);
  const int fraction = static_cast<int>(std::lround(mantissa * 2048)) - 1024;
  return static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | fraction);
}

inline float f16_value(uint16_t h) {
  const float fraction = static_cast<float>(h & 0x3ff) / 1024;
  const int exponent = h >> 10 & 0x1f;
  const float magnitude = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
  return h & 0x8000 ? -magnitude : magnitude;
}

// A weight matrix with rows `ld` apart that starts at an odd element, and its values as float.
struct Weights {
  int32_t dtype;
  int64_t ld;
  std::vector<float> values;
  std::vector<uint16_t> bits;

  Weights(int32_t type, int64_t n, int64_t k, int64_t stride, Random& random) : dtype(type), ld(stride) {
    values.resize(static_cast<size_t>(n * ld + 1));
    bits.resize(values.size());
    for (size_t i = 0; i < values.size(); i++) {
      values[i] = dtype == QF_F32 ? random.next() : std::round(random.next() * 128) / 128;
      bits[i] = dtype == QF_F16 ? f16_bits(values[i]) : bf16_bits(values[i]);
    }
    (void)k;
  }
  const void* data() const {
    return dtype == QF_F32 ? static_cast<const void*>(values.data() + 1) : static_cast<const void*>(bits.data() + 1);
  }
  double at(int64_t row, int64_t i) const { return values[static_cast<size_t>(row * ld + i + 1)]; }
};

inline double activate(double x, int32_t kind) {
  switch (kind) {
    case QF_ACT_GELU_ERF:
      return x * 0.5 * (1 + std::erf(x / std::sqrt(2.0)));
    case QF_ACT_GELU_TANH:
      return x * 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case QF_ACT_RELU:
      return x > 0 ? x : 0;
    case QF_ACT_SILU:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

struct Dot {
  double value, magnitude;
};

inline Dot exact_dot(const float* x, const Weights& w, int64_t row, int64_t k, bool round_x) {
  Dot dot{0, 0};
  for (int64_t i = 0; i < k; i++) {
    const double product = (round_x ? bf16_value(bf16_bits(x[i])) : x[i]) * w.at(row, i);
    dot.value += product;
    dot.magnitude += std::fabs(product);
  }
  return dot;
}

inline double tolerance_of(const Dot& dot, int64_t k) {
  return (static_cast<double>(k) / 4 + 8) * 0x1p-24 * dot.magnitude + 4 * 0x1p-23 * (1 + std::fabs(dot.value));
}

struct Case {
  int64_t m, n, k;
  int32_t dtype = QF_F32, activation = QF_ACT_NONE, math = QF_MATH_F32;
  bool bias = false, residual = false, in_place = false;
  int64_t pad = 0;  // added to every row stride
};

// Everything one call needs, filled from the case alone, so that two runs have equal inputs.
struct Problem {
  Case shape;
  Random random{42};
  std::vector<float> x, bias, residual, y;
  Weights w;

  explicit Problem(const Case& c) : shape(c), w(c.dtype, c.n, c.k, c.k + c.pad, random) {
    x.resize(static_cast<size_t>(c.m * (c.k + c.pad)));
    for (float& v : x) v = random.next();
    bias.resize(static_cast<size_t>(c.n));
    for (float& v : bias) v = random.next();
    residual.resize(static_cast<size_t>(c.m * (c.n + c.pad)));
    for (float& v : residual) v = random.next();
    y = c.in_place ? residual : std::vector<float>(residual.size(), kUntouched);
  }

  // The first `rows` rows only, where rows >= 0.
  const std::vector<float>& run(int64_t rows = -1) {
    QfLinear args{};
    args.x = x.data();
    args.w = w.data();
    args.bias = shape.bias ? bias.data() : nullptr;
    args.residual = shape.in_place ? y.data() : shape.residual ? residual.data() : nullptr;
    args.y = y.data();
    args.m = rows >= 0 ? rows : shape.m;
    args.n = shape.n;
    args.k = shape.k;
    args.ldx = shape.k + shape.pad;
    args.ldw = w.ld;
    args.ldr = args.ldy = shape.n + shape.pad;
    args.dtype = args.y_dtype = QF_F32;
    args.w_dtype = shape.dtype;
    args.activation = shape.activation;
    args.math = shape.math;
    CHECK_EQ(cpu::cpu_backend()->linear(0, &args), QF_OK);
    return y;
  }

  void check() {
    const bool round_x = shape.math == QF_MATH_BF16 && shape.dtype == QF_BF16;
    run();
    for (int64_t i = 0; i < shape.m; i++) {
      for (int64_t j = 0; j < shape.n; j++) {
        const size_t at = static_cast<size_t>(i * (shape.n + shape.pad) + j);
        const Dot dot = exact_dot(x.data() + i * (shape.k + shape.pad), w, j, shape.k, round_x);
        double expected = activate(dot.value + (shape.bias ? bias[static_cast<size_t>(j)] : 0), shape.activation);
        if (shape.residual || shape.in_place) expected += residual[at];
        if (!(std::fabs(y[at] - expected) <= tolerance_of(dot, shape.k) * 1.2)) return report(i, j, y[at], expected);
      }
      for (int64_t j = shape.n; j < shape.n + shape.pad && !shape.in_place; j++) {
        CHECK_EQ(y[static_cast<size_t>(i * (shape.n + shape.pad) + j)], kUntouched);
      }
    }
  }

  void report(int64_t i, int64_t j, double actual, double expected) const {
    std::ostringstream out;
    out << cpu::kernels().level << " m=" << shape.m << " n=" << shape.n << " k=" << shape.k << " dtype=" << shape.dtype
        << " act=" << shape.activation << " math=" << shape.math << ": y[" << i << "," << j << "] = " << actual
        << ", expected " << expected;
    test::fail(__FILE__, __LINE__, out.str());
  }
};

}  // namespace qformer::linear_test
