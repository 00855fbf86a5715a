// Layer norm, RMS norm and softmax on the emulated GPU against double references.
#include <algorithm>
#include <limits>

#include "device_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int32_t kDtypes[] = {QF_F32, QF_F16, QF_BF16};

enum class Norm { kLayer, kRms };

struct NormCase {
  int64_t rows, cols, ld;
  int32_t dtype;
  Norm norm;
  float offset = 0.0f;   // added to every x
  size_t unaligned = 0;  // elements that x starts beyond 16 bytes
  float eps = 1e-5f;
};

std::vector<float> inputs_of(const NormCase& c) {
  std::vector<float> x = Random(static_cast<uint64_t>(c.cols)).floats(c.rows * c.cols, 2.0f);
  for (float& value : x) value += c.offset;
  return rounded(x, c.dtype);
}

std::vector<float> run_norm(const NormCase& c, const std::vector<float>& dense, const std::vector<float>& weight,
                            const std::vector<float>& bias) {
  const DeviceArray x(strided(dense, c.rows, c.cols, c.ld), c.dtype, c.unaligned), w(weight, QF_F32), b(bias, QF_F32);
  const DeviceArray y(std::vector<float>(dense.size(), NAN), c.dtype);
  if (c.norm == Norm::kLayer) {
    const QfLayerNorm args = {x.data(), w.floats(), b.floats(), y.data(), c.rows, c.cols, c.ld, c.eps, c.dtype};
    CHECK_EQ(backend().layer_norm(0, &args), QF_OK);
  } else {
    const QfRmsNorm args = {x.data(), w.floats(), y.data(), c.rows, c.cols, c.ld, c.eps, c.dtype};
    CHECK_EQ(backend().rms_norm(0, &args), QF_OK);
  }
  return y.read();
}

// Tolerance: one rounding to dtype, and a few units of f32 in the statistics and the scaled value.
void check_norm(const NormCase& c) {
  const auto x = inputs_of(c);
  const auto weight = Random(7).floats(c.cols, 1.5f), bias = Random(8).floats(c.cols, 1.0f);
  std::vector<double> expected, tolerance;
  for (int64_t row = 0; row < c.rows; ++row) {
    const float* in = &x[static_cast<size_t>(row * c.cols)];
    double mean = 0, square = 0;
    for (int64_t i = 0; i < c.cols; ++i) mean += in[i];
    mean = c.norm == Norm::kLayer ? mean / static_cast<double>(c.cols) : 0;
    for (int64_t i = 0; i < c.cols; ++i) square += (in[i] - mean) * (in[i] - mean);
    const double scale = 1 / std::sqrt(square / static_cast<double>(c.cols) + c.eps);
    for (int64_t i = 0; i < c.cols; ++i) {
      const double normal = (in[i] - mean) * scale * weight[i];
      expected.push_back(normal + (c.norm == Norm::kLayer ? bias[i] : 0));
      tolerance.push_back(roundoff(c.dtype) * std::abs(expected.back()) + 8 * 0x1p-24 * (std::abs(normal) + 1) +
                          0x1p-23 * std::abs(c.offset) * scale);
    }
  }
  check_close(
      run_norm(c, x, weight, bias), expected, tolerance,
      std::string(c.norm == Norm::kLayer ? "layer" : "rms") + " norm of " + std::to_string(c.cols) + " columns");
}

std::vector<float> run_softmax(const std::vector<float>& dense, int64_t rows, int64_t cols, int64_t ld, bool log) {
  const DeviceArray x(strided(dense, rows, cols, ld), QF_F32), y(std::vector<float>(dense.size(), NAN), QF_F32);
  const QfSoftmax args = {x.floats(), y.floats(), rows, cols, ld, log ? 1 : 0};
  CHECK_EQ(backend().softmax(0, &args), QF_OK);
  return y.read();
}

}  // namespace

TEST("norms of rows of every length and dtype are those of the definition") {
  for (const Norm norm : {Norm::kLayer, Norm::kRms}) {
    for (const int32_t dtype : kDtypes) {
      for (const int64_t cols : {1, 7, 64, 257, 768, 1000, 1408}) check_norm({5, cols, cols, dtype, norm});
      check_norm({2, 4097, 4097, dtype, norm});
      check_norm({2, 10240, 10240, dtype, norm});
      check_norm({1, 16400, 16400, dtype, norm});
    }
  }
}

TEST("norms read rows apart from each other and rows that start anywhere") {
  for (const Norm norm : {Norm::kLayer, Norm::kRms}) {
    for (const int32_t dtype : kDtypes) {
      check_norm({3, 257, 301, dtype, norm});
      check_norm({3, 768, 776, dtype, norm});
      check_norm({3, 1408, 1411, dtype, norm});
      check_norm({3, 768, 768, dtype, norm, 0.0f, 1});
    }
  }
}

TEST("layer norm keeps its precision where the mean is large against the spread") {
  check_norm({3, 768, 768, QF_F32, Norm::kLayer, 1000.0f});
  check_norm({3, 1408, 1408, QF_F32, Norm::kLayer, -4000.0f});
}

TEST("a row is normalised to the same bits alone and among others") {
  for (const int64_t cols : {257, 1408}) {
    const NormCase all = {7, cols, cols, QF_F16, Norm::kLayer}, one = {1, cols, cols, QF_F16, Norm::kLayer};
    const auto x = inputs_of(all);
    const auto weight = Random(7).floats(cols), bias = Random(8).floats(cols);
    const auto together = run_norm(all, x, weight, bias);
    for (int64_t row = 0; row < 7; ++row) {
      const auto alone = run_norm(one, {x.begin() + row * cols, x.begin() + (row + 1) * cols}, weight, bias);
      CHECK(std::equal(alone.begin(), alone.end(), together.begin() + row * cols));
    }
  }
}

TEST("a constant row is normalised to the bias, and no rows and no columns are harmless") {
  const auto weight = Random(7).floats(96), bias = Random(8).floats(96);
  CHECK(run_norm({1, 96, 96, QF_F32, Norm::kLayer}, std::vector<float>(96, 3.0f), weight, bias) == bias);
  const QfLayerNorm empty = {nullptr, nullptr, nullptr, nullptr, 0, 96, 96, 1e-5f, QF_F32};
  CHECK_EQ(backend().layer_norm(0, &empty), QF_OK);
  const QfRmsNorm narrow = {nullptr, nullptr, nullptr, 4, 0, 0, 1e-5f, QF_F32};
  CHECK_EQ(backend().rms_norm(0, &narrow), QF_OK);
}

TEST("softmax and its logarithm are those of the definition") {
  for (const int64_t cols : {1, 7, 257, 1025, 5000, 16400}) {
    const int64_t rows = cols > 2000 ? 2 : 5;
    auto x = Random(static_cast<uint64_t>(cols)).floats(rows * cols, 10.0f);
    if (cols > 3) x[2] = -kInf;
    for (const bool log : {false, true}) {
      std::vector<double> expected, tolerance;
      for (int64_t row = 0; row < rows; ++row) {
        double sum = 0;
        const float* in = &x[static_cast<size_t>(row * cols)];
        for (int64_t i = 0; i < cols; ++i) sum += std::exp(static_cast<double>(in[i]));
        for (int64_t i = 0; i < cols; ++i) {
          const double logarithm = in[i] - std::log(sum);
          expected.push_back(log ? logarithm : std::exp(logarithm));
          // half a unit of a difference of up to 20 is 2^-20; exp, sum and quotient add 8 half units of f32
          tolerance.push_back(log ? 1e-5 : expected.back() * (16 + 8) * 0x1p-24);
        }
      }
      auto actual = run_softmax(x, rows, cols, cols + 3, log);
      if (cols > 3 && log) {
        CHECK_EQ(actual[2], -kInf);
        actual[2] = 0;
        expected[2] = 0;
      }
      check_close(actual, expected, tolerance, "softmax of " + std::to_string(cols) + " columns");
    }
  }
}

TEST("a row without a finite score gives zeros, and NaN stays in its row") {
  for (const int64_t cols : {9, 1500}) {
    std::vector<float> x(static_cast<size_t>(3 * cols), 1.0f);
    for (int64_t i = 0; i < cols; ++i) x[static_cast<size_t>(i)] = -kInf;
    x[static_cast<size_t>(cols + 4)] = NAN;
    const auto y = run_softmax(x, 3, cols, cols, false), logarithm = run_softmax(x, 3, cols, cols, true);
    for (int64_t i = 0; i < cols; ++i) {
      CHECK_EQ(y[static_cast<size_t>(i)], 0.0f);
      CHECK_EQ(logarithm[static_cast<size_t>(i)], -kInf);
      CHECK(std::isnan(y[static_cast<size_t>(cols + i)]));
      CHECK_NEAR(y[static_cast<size_t>(2 * cols + i)], 1.0 / static_cast<double>(cols), 1e-7);
    }
  }
  const QfSoftmax empty = {nullptr, nullptr, 3, 0, 0, 0};
  CHECK_EQ(backend().softmax(0, &empty), QF_OK);
}
