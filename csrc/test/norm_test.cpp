// Norms and softmax against double references on odd sizes, and the rows that break one-pass formulas.
#include <cmath>
#include <limits>

#include "cpu/families.h"
#include "random_data.h"
#include "test.h"

using namespace qformer;
using qformer::test::Random;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Moments {
  double mean, variance, mean_square;
};

Moments moments(const float* x, int64_t n) {
  Moments m = {};
  for (int64_t i = 0; i < n; ++i) m.mean += x[i] / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    m.variance += (x[i] - m.mean) * (x[i] - m.mean) / static_cast<double>(n);
    m.mean_square += static_cast<double>(x[i]) * x[i] / static_cast<double>(n);
  }
  return m;
}

}  // namespace

TEST("layer norm and RMS norm agree with double on odd sizes and strided rows") {
  for (const int64_t cols : {1, 2, 7, 77, 257, 1408}) {
    const int64_t rows = 5, ldx = cols + 3;
    const auto x = Random(static_cast<uint64_t>(cols)).floats(rows * ldx, 3.0f);
    const auto weight = Random(2).floats(cols), bias = Random(3).floats(cols);
    std::vector<float> layer(static_cast<size_t>(rows * cols)), rms(layer.size());
    const float eps = 1e-5f;
    const QfLayerNorm first = {x.data(), weight.data(), bias.data(), layer.data(), rows, cols, ldx, eps, QF_F32};
    const QfRmsNorm second = {x.data(), weight.data(), rms.data(), rows, cols, ldx, eps, QF_F32};
    CHECK_EQ(cpu::layer_norm(0, &first), QF_OK);
    CHECK_EQ(cpu::rms_norm(0, &second), QF_OK);
    for (int64_t r = 0; r < rows; ++r) {
      const Moments m = moments(&x[r * ldx], cols);
      for (int64_t i = 0; i < cols; ++i) {
        const double v = x[r * ldx + i];
        // a few units in the last place of values up to 4; two columns may be close together, which amplifies rounding
        CHECK_NEAR(layer[r * cols + i], (v - m.mean) / std::sqrt(m.variance + eps) * weight[i] + bias[i], 5e-6);
        CHECK_NEAR(rms[r * cols + i], v / std::sqrt(m.mean_square + eps) * weight[i], 2e-6);
      }
    }
  }
}

TEST("layer norm keeps its precision where the mean is ten thousand times the spread") {
  const int64_t cols = 1408;
  auto x = Random(7).floats(cols, 1.0f);
  for (float& value : x) value += 10000.0f;
  const std::vector<float> weight(cols, 1.0f), bias(cols, 0.0f);
  std::vector<float> y(cols);
  const QfLayerNorm args = {x.data(), weight.data(), bias.data(), y.data(), 1, cols, cols, 1e-6f, QF_F32};
  CHECK_EQ(cpu::layer_norm(0, &args), QF_OK);
  const Moments m = moments(x.data(), cols);
  for (int64_t i = 0; i < cols; ++i) CHECK_NEAR(y[i], (x[i] - m.mean) / std::sqrt(m.variance + 1e-6), 2e-5);
}

TEST("a constant row normalises to the bias") {
  const std::vector<float> x(77, 1234.567f), weight(77, 2.0f), bias(77, 0.5f);
  std::vector<float> y(77);
  const QfLayerNorm args = {x.data(), weight.data(), bias.data(), y.data(), 1, 77, 77, 1e-12f, QF_F32};
  CHECK_EQ(cpu::layer_norm(0, &args), QF_OK);
  for (const float value : y) CHECK_NEAR(value, 0.5, 2e-5);
}

TEST("softmax and its logarithm agree with double, masked entries included") {
  for (const int64_t cols : {1, 7, 257, 4097}) {
    auto x = Random(static_cast<uint64_t>(cols)).floats(3 * cols, 20.0f);
    for (int64_t i = 1; i < 3 * cols; i += 5) x[i] = -kInf;
    for (int64_t i = 0; i < cols; ++i) x[2 * cols + i] = -kInf;
    std::vector<float> soft(x.size()), log(x.size());
    const QfSoftmax first = {x.data(), soft.data(), 3, cols, cols, 0};
    const QfSoftmax second = {x.data(), log.data(), 3, cols, cols, 1};
    CHECK_EQ(cpu::softmax(0, &first), QF_OK);
    CHECK_EQ(cpu::softmax(0, &second), QF_OK);
    for (int64_t r = 0; r < 3; ++r) {
      double max = -kInf, sum = 0;
      for (int64_t i = 0; i < cols; ++i) max = std::max<double>(max, x[r * cols + i]);
      for (int64_t i = 0; i < cols; ++i) sum += max == -kInf ? 0 : std::exp(x[r * cols + i] - max);
      for (int64_t i = r * cols; i < (r + 1) * cols; ++i) {
        if (x[i] == -kInf) {
          CHECK_EQ(soft[i], 0.0f);
          CHECK_EQ(log[i], -kInf);
        } else {
          CHECK_NEAR(soft[i], std::exp(x[i] - max) / sum, 1e-6);
          CHECK_NEAR(log[i], x[i] - max - std::log(sum), 1e-5);
        }
      }
    }
  }
}

TEST("NaN in a row spoils that row of a softmax and no other") {
  std::vector<float> x(2 * 33, 1.0f), y(2 * 33);
  x[32] = std::numeric_limits<float>::quiet_NaN();
  const QfSoftmax args = {x.data(), y.data(), 2, 33, 33, 0};
  CHECK_EQ(cpu::softmax(0, &args), QF_OK);
  for (int i = 0; i < 33; ++i) CHECK(std::isnan(y[i]));
  for (int i = 33; i < 66; ++i) CHECK_NEAR(y[i], 1.0 / 33, 1e-7);
}
