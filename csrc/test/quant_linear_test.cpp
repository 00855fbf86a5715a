// Quantised weights on every instruction set the machine has: products against a double-precision reference, and bits
// that do not depend on rows or threads.
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/cpu_backend.h"
#include "cpu/families.h"
#include "cpu/kernels.h"
#include "levels.h"
#include "random_data.h"
#include "test.h"

using namespace qformer;
using qformer::cpu::kQuantUnit;
using qformer::test::on_every_level;
using qformer::test::Random;

namespace {

// Level and scale of column i of a row of n, in groups of whole units (quant_layout.h) and in others.
struct Codes {
  int64_t n, k, group;
  int32_t bits;
  std::vector<uint8_t> q;
  std::vector<uint16_t> scales;

  bool in_blocks() const { return group % kQuantUnit == 0; }
  int level(int64_t row, int64_t i) const {
    if (!in_blocks()) {
      const uint8_t stored = q[static_cast<size_t>((row * k + i) * bits / 8)];
      return bits == 8 ? static_cast<int8_t>(stored) : (i % 2 == 0 ? stored & 15 : stored >> 4) - 8;
    }
    const int64_t first = row / 16 * 16, rows = std::min<int64_t>(16, n - first);
    const int64_t word = i / (32 / bits), at = first * k * bits / 8 + 4 * (word * rows + row - first) + i % 4;
    const uint8_t stored = q[static_cast<size_t>(at)];
    return bits == 8 ? stored - 128 : (i % 8 < 4 ? stored & 15 : stored >> 4) - 8;
  }
  uint16_t scale(int64_t row, int64_t i) const {
    const int64_t groups = k / group, first = row / 16 * 16, rows = std::min<int64_t>(16, n - first);
    const int64_t at = in_blocks() ? first * groups + i / group * rows + row - first : row * groups + i / group;
    return scales[static_cast<size_t>(at)];
  }
};

float scale_of(uint16_t bf16) { return std::bit_cast<float>(uint32_t{bf16} << 16); }

// The least bf16 number that is not below x >= 0.
float rounded_up(float x) {
  if (x == 0 || std::isinf(x)) return x;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x), -126) - 7);
  return static_cast<float>(std::ceil(x / unit) * unit);
}

Codes codes_of(const std::vector<float>& w, int64_t n, int64_t k, int64_t group, int32_t bits) {
  Codes codes{n,
              k,
              group,
              bits,
              std::vector<uint8_t>(static_cast<size_t>(n * k * bits / 8)),
              std::vector<uint16_t>(static_cast<size_t>(n * k / group))};
  const QfQuantize args{w.data(), codes.q.data(), codes.scales.data(), n, k, k, group, QF_F32, bits};
  CHECK_EQ(cpu::quantize(0, &args), QF_OK);
  return codes;
}

struct Problem {
  int64_t m, n, k, group;
  int32_t bits, math;
  std::vector<float> x, bias, residual;
  Codes codes;

  Problem(int64_t m_, int64_t n_, int64_t k_, int64_t group_, int32_t bits_, int32_t math_)
      : m(m_), n(n_), k(k_), group(group_), bits(bits_), math(math_) {
    x = Random(1).floats(m * k);
    bias = Random(2).floats(n);
    residual = Random(3).floats(m * n);
    codes = codes_of(Random(4).floats(n * k), n, k, group, bits);
  }

  double weight(int64_t row, int64_t i) const {
    return static_cast<float>(codes.level(row, i)) * scale_of(codes.scale(row, i));
  }

  // What rounding row i of x to 16 or 8 bits in units of columns can add to its product with row j of w.
  double rounding(int64_t i, int64_t j) const {
    double sum = 0;
    for (int64_t first = 0; group % kQuantUnit == 0 && first < k; first += kQuantUnit) {
      double largest = 0, weights = 0;
      for (int64_t c = first; c < first + kQuantUnit; c++) {
        largest = std::max<double>(largest, std::fabs(x[static_cast<size_t>(i * k + c)]));
        weights += std::fabs(weight(j, c));
      }
      sum += weights * largest / (math == QF_MATH_INT8 ? 127 : 32639) / 2;
    }
    return sum;
  }

  // The first `rows` rows.
  std::vector<float> run(int64_t rows) const {
    std::vector<float> y(static_cast<size_t>(m * n), NAN);
    QfQuantLinear args{};
    args.x = x.data();
    args.q = codes.q.data();
    args.scales = codes.scales.data();
    args.bias = bias.data();
    args.residual = residual.data();
    args.y = y.data();
    args.m = rows;
    args.n = n;
    args.k = k;
    args.group = group;
    args.ldx = k;
    args.ldr = args.ldy = n;
    args.dtype = args.y_dtype = QF_F32;
    args.bits = bits;
    args.math = math;
    args.activation = QF_ACT_RELU;
    CHECK_EQ(cpu::quant_linear(0, &args), QF_OK);
    return y;
  }

  void check() const {
    const std::vector<float> y = run(m);
    for (int64_t i = 0; i < m; i++) {
      for (int64_t j = 0; j < n; j++) {
        double sum = bias[static_cast<size_t>(j)], magnitude = std::fabs(sum);
        for (int64_t c = 0; c < k; c++) {
          const double product = x[static_cast<size_t>(i * k + c)] * weight(j, c);
          sum += product;
          magnitude += std::fabs(product);
        }
        const size_t at = static_cast<size_t>(i * n + j);
        // k / 4 roundings per lane of widened weights, fewer of units, and a few for the rest
        const double tolerance = (static_cast<double>(k) / 4 + 8) * 0x1p-24 * magnitude + 0x1p-22;
        CHECK_NEAR(y[at], std::fmax(sum, 0) + residual[at], tolerance + rounding(i, j));
      }
    }
  }
};

// body(bits, math) with every width of weights and of x on every instruction set.
template <class Body>
void on_every_form(const Body& body) {
  on_every_level([&] {
    for (const int32_t bits : {8, 4}) {
      for (const int32_t math : {QF_MATH_F32, QF_MATH_INT8}) body(bits, math);
    }
  });
}

}  // namespace

TEST("quantize rounds to nearest even, clamps, takes NaN for 0 and no scale from it, on every instruction set") {
  on_every_level([] {
    for (const int32_t bits : {8, 4}) {
      const float limit = bits == 8 ? 127.0f : 7.0f;
      for (const int64_t group : {2, 6, 32, 64, 74}) {
        const int64_t n = 6, k = group * 3;
        std::vector<float> w = Random(9).floats(n * k);
        for (int64_t i = 0; i < k; i++) w[static_cast<size_t>(i)] = static_cast<float>(i % 15 - 7) * 0.5f;  // ties
        for (int64_t i = k; i < k + group; i++) w[static_cast<size_t>(i)] = 0;
        w[static_cast<size_t>(2 * k + 1)] = NAN;
        w[static_cast<size_t>(3 * k)] = INFINITY;
        for (int64_t i = 4 * k; i < 5 * k; i++) w[static_cast<size_t>(i)] *= 0x1p-140f;
        const Codes codes = codes_of(w, n, k, group, bits);
        for (int64_t at = 0; at < n * k; at++) {
          float largest = 0;
          for (int64_t i = at / group * group; i < (at / group + 1) * group; i++) {
            largest = std::fmax(largest, std::fabs(w[static_cast<size_t>(i)]));
          }
          const float scale = scale_of(codes.scale(at / k, at % k));
          CHECK_EQ(scale, rounded_up(largest / limit));
          const float level = std::nearbyint(w[static_cast<size_t>(at)] / scale);
          const float expected = std::isnan(level) || !(scale > 0) ? 0 : std::fmin(std::fmax(level, -limit), limit);
          CHECK_EQ(codes.level(at / k, at % k), static_cast<int>(expected));
        }
      }
    }
  });
}

TEST("a scale is the least bf16 number that is not below its quotient, a finite one for the largest float") {
  on_every_level([] {
    for (const int32_t bits : {8, 4}) {
      const float limit = bits == 8 ? 127.0f : 7.0f;
      const auto quantized = [&](float first, float second) {
        const Codes codes = codes_of({first, second}, 1, 2, 2, bits);
        const float scale = scale_of(codes.scale(0, 0)), level = std::nearbyint(second / scale);
        CHECK(std::fabs(level) <= limit);
        CHECK_EQ(codes.level(0, 1), static_cast<int>(level));
        return scale;
      };
      for (const float scale : {0x1p-126f, 0x1.02p-9f, 1.0f, 0x1.fep90f}) {
        const float next = scale_of(static_cast<uint16_t>((std::bit_cast<uint32_t>(scale) >> 16) + 1));
        for (const float sign : {1.0f, -1.0f}) {
          float largest = limit * scale;
          CHECK_EQ(quantized(-sign * largest / 3, sign * largest), scale);
          while (largest / limit == scale) largest = std::nextafter(largest, INFINITY);
          CHECK_EQ(quantized(0, sign * largest), next);
          CHECK_EQ(quantized(0, sign * std::nextafter(limit * next, 0.0f)), next);
        }
      }
      CHECK_EQ(quantized(0, -FLT_MAX), rounded_up(FLT_MAX / limit));
    }
  });
}

TEST("quantised products equal the exact result of the widened weights, in whole blocks of columns and in others") {
  on_every_form([](int32_t bits, int32_t math) {
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 13, 40}) {
      Problem(m, 17, 128, 128, bits, math).check();
      Problem(m, 5, 192, 64, bits, math).check();
      Problem(m, 7, 120, 40, bits, math).check();
      Problem(m, 1, 256, 256, bits, math).check();
      Problem(m, 3, 1152, 192, bits, math).check();
      Problem(m, 4, 96, 32, bits, math).check();
    }
    for (const int64_t m : {1, 4, 9}) Problem(m, 133, 128, 64, bits, math).check();
    // several panels and blocks of k, of widths that no vector divides
    Problem(21, 9, 2624, 64, bits, math).check();
    Problem(131, 37, 192, 64, bits, math).check();
    Problem(20, 100, 896, 448, bits, math).check();
  });
}

TEST("sums of the largest levels of weights and of x fit into their integers") {
  on_every_form([](int32_t bits, int32_t math) {
    for (const int64_t m : {1, 3, 7, 20}) {
      Problem problem(m, 19, 256, 64, bits, math);
      // 1, -1, or one after the other
      const auto value = [](int64_t row, int64_t i) {
        return row % 3 == 2 ? 1.0f - 2.0f * (i % 2) : 1.0f - row % 3 * 2;
      };
      std::vector<float> w(static_cast<size_t>(problem.n * problem.k));
      for (int64_t at = 0; at < m * problem.k; at++) {
        problem.x[static_cast<size_t>(at)] = value(at / problem.k + m, at % problem.k);
      }
      for (int64_t at = 0; at < problem.n * problem.k; at++) {
        w[static_cast<size_t>(at)] = value(at / problem.k, at % problem.k);
      }
      problem.codes = codes_of(w, problem.n, problem.k, problem.group, bits);
      problem.check();
    }
  });
}

TEST("a quantised product of rows that are zero, tiny, huge or not finite spoils no other row") {
  on_every_form([](int32_t bits, int32_t math) {
    for (const int64_t m : {6, 30}) {
      Problem problem(m, 9, 640, 64, bits, math);
      const std::vector<float> plain = problem.run(m);
      const auto row = [&](int64_t i) { return problem.x.begin() + i * problem.k; };
      const auto fill = [&](int64_t i, float value) { std::fill(row(i), row(i + 1), value); };
      fill(0, 0);
      fill(1, 0x1p-149f);
      fill(2, -0x1p120f);
      row(3)[7] = INFINITY;
      row(4)[100] = NAN;
      const std::vector<float> y = problem.run(m);
      for (int64_t j = 0; j < problem.n; j++) {
        const auto at = [&](int64_t i) { return static_cast<size_t>(i * problem.n + j); };
        const float alone = std::fmax(problem.bias[static_cast<size_t>(j)], 0.0f);
        for (const int64_t i : {0, 1}) CHECK_EQ(y[at(i)], alone + problem.residual[at(i)]);
        CHECK(std::isfinite(y[at(2)]));
        for (const int64_t i : {3, 4}) CHECK(std::isnan(y[at(i)]));
        for (int64_t i = 5; i < m; i++) CHECK_EQ(y[at(i)], plain[at(i)]);
      }
    }
  });
}

TEST("a row's quantised product has the same bits beside any rows and on any number of threads") {
  const int32_t threads = cpu::threads();
  on_every_form([](int32_t bits, int32_t math) {
    cpu::set_threads(1);
    const Problem problem(90, 87, 832, 64, bits, math), wide(4, 1500, 832, 64, bits, math);
    const std::vector<float> all = problem.run(90), all_wide = wide.run(4);
    for (const int32_t count : {1, 3}) {
      cpu::set_threads(count);
      for (const int64_t m : {1, 2, 4}) {
        CHECK(std::memcmp(wide.run(m).data(), all_wide.data(), static_cast<size_t>(m * wide.n) * sizeof(float)) == 0);
      }
      for (int64_t m = 1; m <= 90; m += m < 14 ? 1 : 38) {
        CHECK(std::memcmp(problem.run(m).data(), all.data(), static_cast<size_t>(m * problem.n) * sizeof(float)) == 0);
      }
    }
  });
  cpu::set_threads(threads);
}

TEST("quantised products have the same bits on all instruction sets with a fused multiply-add") {
  for (const int32_t bits : {8, 4}) {
    for (const int32_t math : {QF_MATH_F32, QF_MATH_INT8}) {
      const Problem problem(25, 55, 704, 64, bits, math);
      std::vector<std::vector<float>> all;
      on_every_level([&] {
        if (std::strcmp(cpu::kernels().level, "scalar") != 0) all.push_back(problem.run(25));
      });
      for (const std::vector<float>& y : all)
        CHECK(std::memcmp(y.data(), all[0].data(), y.size() * sizeof(float)) == 0);
    }
  }
}
