// The double reference of a product of few rows with its prologue, and how far an f32 sum may be from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "device_array.h"

namespace qformer::test {

inline double activated(double x, int32_t activation) {
  switch (activation) {
    case QF_ACT_GELU_ERF:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case QF_ACT_GELU_TANH:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case QF_ACT_RELU:
      return std::max(x, 0.0);
    case QF_ACT_SILU:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

// Dense rows: x / rms * weight, rounded to dtype. Without weights x itself.
inline std::vector<float> normed_rows(const std::vector<float>& x, const std::vector<float>& weight, int64_t k,
                                      double eps, int32_t dtype) {
  if (weight.empty()) return x;
  std::vector<float> out(x.size());
  for (size_t row = 0; row < x.size(); row += static_cast<size_t>(k)) {
    double square = 0;
    for (int64_t i = 0; i < k; ++i) square += double(x[row + i]) * x[row + i];
    const double scale = 1 / std::sqrt(square / double(k) + eps);
    for (int64_t i = 0; i < k; ++i) out[row + i] = rounded(static_cast<float>(x[row + i] * scale * weight[i]), dtype);
  }
  return out;
}

struct Sums {
  std::vector<double> value, error;  // [m, n]
};

// x · wᵀ. `error`: k roundings of an f32 sum; and where x was normalised, up to 4 of its values on the other side of a
// rounding boundary (f32 against double), each a unit of the last place of the largest product.
inline Sums product(const std::vector<float>& x, const std::vector<float>& w, int64_t m, int64_t n, int64_t k,
                    bool normed, int32_t dtype) {
  Sums sums{std::vector<double>(static_cast<size_t>(m * n)), std::vector<double>(static_cast<size_t>(m * n))};
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, magnitude = 0, largest = 0;
      for (int64_t c = 0; c < k; ++c) {
        const double term = double(x[static_cast<size_t>(i * k + c)]) * w[static_cast<size_t>(j * k + c)];
        sum += term;
        magnitude += std::abs(term);
        largest = std::max(largest, std::abs(term));
      }
      const size_t at = static_cast<size_t>(i * n + j);
      sums.value[at] = sum;
      sums.error[at] = double(k) * 0x1p-24 * magnitude + (normed ? 8 * roundoff(dtype) * largest : 0) + 1e-30;
    }
  }
  return sums;
}

}  // namespace qformer::test
