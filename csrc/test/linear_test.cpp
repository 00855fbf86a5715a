// The CPU backend's linear family against a double-precision reference, on every instruction set the machine has.
//
// Tolerance: each product is rounded once and the k-term sum has at most k/L + log2(L) roundings per lane, so
// |error| <= (k / 4 + 8) * 2^-24 * Σ|x·w| bounds every instruction set (L = 4 is the narrowest); the activations add 4
// ulp.
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/backend.h"
#include "cpu/cpu_backend.h"
#include "cpu/kernels.h"
#include "test.h"

namespace {

using namespace qformer;

const char* const kLevels[] = {"scalar", "avx2", "avx512", "avx512bf16", "neon"};
constexpr float kUntouched = -12345.0f;

struct Random {
  uint64_t state;
  float next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
  }
};

uint16_t bf16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float bf16_value(uint16_t h) {
  const uint32_t bits = uint32_t{h} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// Values in [-1, 1] are multiples of 2^-11 here, so that both conversions are exact.
uint16_t f16_bits(float x) {
  if (x == 0) return 0;
  int exponent;
  const float mantissa = std::frexp(std::fabs(x), &exponent);
  const int fraction = static_cast<int>(std::lround(mantissa * 2048)) - 1024;
  return static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | fraction);
}

float f16_value(uint16_t h) {
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

double activate(double x, int32_t kind) {
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

Dot exact_dot(const float* x, const Weights& w, int64_t row, int64_t k, bool round_x) {
  Dot dot{0, 0};
  for (int64_t i = 0; i < k; i++) {
    const double product = (round_x ? bf16_value(bf16_bits(x[i])) : x[i]) * w.at(row, i);
    dot.value += product;
    dot.magnitude += std::fabs(product);
  }
  return dot;
}

double tolerance_of(const Dot& dot, int64_t k) {
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

template <class Body>
void on_every_level(const Body& body) {
  for (const char* level : kLevels) {
    const cpu::CpuKernels* table = cpu::find_kernels(level);
    if (table == nullptr) continue;
    cpu::override_kernels(table);
    body();
  }
  cpu::override_kernels(nullptr);
}

void check_types(Case shape) {
  for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
    for (int32_t math : {QF_MATH_F32, QF_MATH_BF16}) {
      shape.dtype = dtype;
      shape.math = math;
      Problem(shape).check();
    }
  }
}

}  // namespace

TEST("linear equals the exact result at odd sizes, for every weight type and instruction set") {
  on_every_level([] {
    for (int64_t k : {1, 7, 16, 33, 88, 1408}) {
      for (int64_t m : {1, 2, 7, 17, 33}) check_types({.m = m, .n = 17, .k = k, .bias = true});
    }
    for (int64_t n : {1, 7, 33, 65, 127, 257}) {
      for (int64_t m : {1, 5, 65}) check_types({.m = m, .n = n, .k = 40, .bias = true});
    }
    check_types({.m = 257, .n = 65, .k = 88});
    check_types({.m = 300, .n = 13, .k = 2500});
  });
}

TEST("linear keeps row strides and writes nothing between rows") {
  on_every_level([] {
    for (int64_t m : {3, 40}) check_types({.m = m, .n = 19, .k = 35, .bias = true, .residual = true, .pad = 5});
  });
}

TEST("linear adds a residual that lies in y itself") {
  on_every_level([] {
    for (int64_t m : {1, 9, 50}) check_types({.m = m, .n = 70, .k = 48, .residual = true, .in_place = true});
  });
}

TEST("linear applies every activation between bias and residual") {
  on_every_level([] {
    for (int32_t kind : {QF_ACT_GELU_ERF, QF_ACT_GELU_TANH, QF_ACT_RELU, QF_ACT_SILU}) {
      for (int64_t m : {2, 30})
        check_types({.m = m, .n = 37, .k = 24, .activation = kind, .bias = true, .residual = true});
    }
  });
}

TEST("linear without inputs (k = 0) gives the epilogue of zero, and m = 0 or n = 0 touches nothing") {
  Problem empty({.m = 3, .n = 5, .k = 0, .bias = true});
  empty.run();
  for (size_t i = 0; i < 15; i++) CHECK_EQ(empty.y[i], empty.bias[i % 5]);
  Problem none({.m = 4, .n = 5, .k = 6});
  for (float v : none.run(0)) CHECK_EQ(v, kUntouched);
}

TEST("a row's bits do not depend on the number of rows beside it nor on the number of threads") {
  const int32_t threads = cpu::threads();
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      for (int32_t math : {QF_MATH_F32, QF_MATH_BF16}) {
        // k of several panels of the packed path
        const Case shape{.m = 300, .n = 55, .k = 1500, .dtype = dtype, .math = math, .bias = true};
        cpu::set_threads(1);
        Problem all(shape);
        all.run();
        for (int32_t count : {1, 2, 5}) {
          cpu::set_threads(count);
          for (int64_t m = 1; m <= 300; m = m < 33 ? m + 1 : m + 89) {
            Problem some(shape);
            some.run(m);
            CHECK(std::memcmp(some.y.data(), all.y.data(), static_cast<size_t>(m * shape.n) * sizeof(float)) == 0);
          }
        }
      }
    }
  });
  cpu::set_threads(threads);
}

TEST("NaN and infinity reach the outputs of their own row only") {
  on_every_level([] {
    for (int64_t m : {4, 21}) {
      Problem problem({.m = m, .n = 9, .k = 40});
      problem.x[40 + 3] = NAN;
      problem.x[2 * 40 + 5] = INFINITY;
      problem.run();
      for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < 9; j++) {
          const float y = problem.y[static_cast<size_t>(i * 9 + j)];
          CHECK(i == 1 ? std::isnan(y) : i == 2 ? !std::isfinite(y) : std::isfinite(y));
        }
      }
    }
  });
}

TEST("gated linear equals act(x wGate) * (x wUp) of the two separate products") {
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      for (int64_t m : {1, 6, 20, 70}) {
        Problem gate({.m = m, .n = 53, .k = 77, .dtype = dtype, .activation = QF_ACT_SILU});
        Problem up({.m = m, .n = 53, .k = 77, .dtype = dtype});
        for (uint16_t& bits : up.w.bits) bits ^= 0x8000;
        for (float& v : up.w.values) v = -v;
        std::vector<float> y(gate.y.size());
        QfGatedLinear args{gate.x.data(), gate.w.data(), up.w.data(), nullptr,    y.data(), m, 53, 77, 77, 77, 53, 0,
                           QF_F32,        dtype,         QF_ACT_SILU, QF_MATH_F32};
        CHECK_EQ(cpu::cpu_backend()->gated_linear(0, &args), QF_OK);
        gate.run();
        up.run();
        for (size_t i = 0; i < y.size(); i++) CHECK_EQ(y[i], gate.y[i] * up.y[i]);
      }
    }
  });
}

TEST("lora merge adds the scaled product to the weights and rounds once") {
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      const int64_t out = 19, in = 37, rank = 5;
      Random random{7};
      Weights w(dtype, out, in, in, random);
      std::vector<float> a(static_cast<size_t>(rank * in)), b(static_cast<size_t>(out * rank));
      for (float& v : a) v = random.next();
      for (float& v : b) v = random.next();
      std::vector<float> y(static_cast<size_t>(out * in));
      QfLoraMerge args{w.data(), a.data(), b.data(), y.data(), out, in, rank, 0.5f, dtype};
      CHECK_EQ(cpu::cpu_backend()->lora_merge(0, &args), QF_OK);
      const auto* bits = reinterpret_cast<const uint16_t*>(y.data());
      for (int64_t i = 0; i < out * in; i++) {
        double expected = w.at(i / in, i % in);
        for (int64_t r = 0; r < rank; r++) {
          expected += 0.5 * a[static_cast<size_t>(r * in + i % in)] * b[static_cast<size_t>(i / in * rank + r)];
        }
        // Half a unit in the last place of bf16 and f16, and the f32 rounding of a sum below 8.
        if (dtype == QF_F32) CHECK_NEAR(y[static_cast<size_t>(i)], expected, 2e-6);
        if (dtype == QF_BF16) CHECK_NEAR(bf16_value(bits[i]), expected, std::fabs(expected) * 0x1p-8 + 1e-6);
        if (dtype == QF_F16) CHECK_NEAR(f16_value(bits[i]), expected, std::fabs(expected) * 0x1p-11 + 1e-6);
      }
    }
  });
}
