// Problems for the tests of linear, gated linear and the GEMM under them: operands on the emulated device with any
// stride and misalignment, and y = act(x · wᵀ + bias) + residual in double with the error bound of each element.
//
// The bound. Products of the stored (rounded) operands are exact in f32 sums of k terms, whose rounding errors add up
// like a random walk: at most 4 · 2^-24 · sqrt(k) · Σ|x w| (four standard deviations). An activation stretches it by
// less than 1.2 and adds 2^-21 of its own; a gated product multiplies two such values. The result is then rounded once
// to y_dtype.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "prims/dtype.h"
#include "random_data.h"
#include "runtime/device.h"
#include "test.h"

extern "C" const QfBackend* qformer_backend(uint32_t abi);

namespace qformer::test {

inline const QfBackend& table() { return *qformer_backend(QF_BACKEND_ABI); }

inline float load_as(int32_t dtype, const uint8_t* bytes, int64_t i) {
  if (dtype == QF_F32) {
    float value;
    std::memcpy(&value, bytes + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * i, 2);
  return dtype == QF_F16 ? cuda::to_float(cuda::Half{bits}) : cuda::to_float(cuda::BFloat16{bits});
}

inline void store_as(int32_t dtype, uint8_t* bytes, int64_t i, float value) {
  if (dtype == QF_F32) {
    std::memcpy(bytes + 4 * i, &value, 4);
    return;
  }
  const uint16_t bits =
      dtype == QF_F16 ? cuda::from_float<cuda::Half>(value).bits : cuda::from_float<cuda::BFloat16>(value).bits;
  std::memcpy(bytes + 2 * i, &bits, 2);
}

// A matrix on the device with its values on the host. Rows lie ld = columns + padding apart and begin `shift` elements
// into the allocation; what lies between is NaN.
class Matrix {
 public:
  Matrix(int32_t dtype, int64_t rows, int64_t columns, int64_t padding = 0, int64_t shift = 0)
      : dtype(dtype), rows(rows), columns(columns), ld(columns + padding), shift_(shift) {
    const size_t count = static_cast<size_t>(shift + rows * ld);
    bytes_.resize(std::max<size_t>(count * qf_dtype_size(dtype), 1));
    for (size_t i = 0; i < count; ++i) store_as(dtype, bytes_.data(), static_cast<int64_t>(i), std::nanf(""));
    CHECK_EQ(table().alloc(0, bytes_.size(), &memory_), QF_OK);
    upload();
  }
  ~Matrix() { table().free(0, memory_, bytes_.size()); }
  Matrix(const Matrix&) = delete;

  // value(row, column) → float
  template <class Value>
  void fill_with(Value value) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) store_as(dtype, bytes_.data(), at(i, j), value(i, j));
    upload();
  }
  void fill(Random& random, float scale) {
    fill_with([&](int64_t, int64_t) { return random.uniform(scale); });
  }
  // The first rows of another matrix of the same dtype.
  void copy_rows(const Matrix& from) {
    fill_with([&](int64_t i, int64_t j) { return from(i, j); });
  }
  void download() { CHECK_EQ(table().download(0, bytes_.data(), memory_, bytes_.size()), QF_OK); }
  float operator()(int64_t i, int64_t j) const { return load_as(dtype, bytes_.data(), at(i, j)); }
  // True where nothing between the rows was written.
  bool padding_untouched() const {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = columns; j < ld; ++j)
        if (!std::isnan(load_as(dtype, bytes_.data(), at(i, j)))) return false;
    return true;
  }
  void* data() const { return static_cast<uint8_t*>(memory_) + static_cast<size_t>(shift_) * qf_dtype_size(dtype); }
  float* floats() const { return static_cast<float*>(data()); }

  const int32_t dtype;
  const int64_t rows, columns, ld;

 private:
  int64_t at(int64_t i, int64_t j) const { return shift_ + i * ld + j; }
  void upload() { CHECK_EQ(table().upload(0, memory_, bytes_.data(), bytes_.size()), QF_OK); }

  int64_t shift_;
  std::vector<uint8_t> bytes_;
  void* memory_ = nullptr;
};

inline double activation_of(int32_t activation, double x) {
  switch (activation) {
    case QF_ACT_GELU_ERF:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case QF_ACT_GELU_TANH:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case QF_ACT_RELU:
      return std::max(x, 0.0);
    case QF_ACT_SILU:
      return x / (1.0 + std::exp(-x));
    default:
      return x;
  }
}

// Half a unit in the last place of `value` stored as dtype.
inline double rounding_of(int32_t dtype, double value) {
  const double relative = dtype == QF_F32 ? 0x1p-24 : dtype == QF_F16 ? 0x1p-11 : 0x1p-8;
  return std::abs(value) * relative + (dtype == QF_F16 ? 0x1p-25 : 0.0);
}

struct Expected {
  double value, error;
};

// Σ x w over a row of each.
inline Expected dot_of(const Matrix& x, int64_t i, const Matrix& w, int64_t j, bool x_as_bf16 = false) {
  double sum = 0.0, magnitude = 0.0;
  for (int64_t k = 0; k < x.columns; ++k) {
    const float a = x_as_bf16 ? cuda::to_float(cuda::from_float<cuda::BFloat16>(x(i, k))) : x(i, k);
    sum += static_cast<double>(a) * w(j, k);
    magnitude += std::abs(static_cast<double>(a) * w(j, k));
  }
  return {sum, 4 * 0x1p-24 * std::sqrt(static_cast<double>(x.columns)) * magnitude};
}

inline Expected activated(int32_t activation, Expected x) {
  if (activation == QF_ACT_NONE) return x;
  const double value = activation_of(activation, x.value);
  return {value, 1.2 * x.error + 0x1p-21 * (std::abs(value) + std::abs(x.value))};
}

// False after the first element that is wrong, so that a broken kernel is reported once.
inline bool check_element(const Matrix& y, int64_t i, int64_t j, Expected expected, const std::string& what) {
  const double error = expected.error + rounding_of(y.dtype, std::abs(expected.value) + expected.error);
  const double actual = y(i, j);
  if (std::abs(actual - expected.value) <= error) return true;
  check_near(actual, expected.value, error, (what + " [" + std::to_string(i) + ", " + std::to_string(j) + "]").c_str(),
             __FILE__, __LINE__);
  return false;
}

// Compares rows bit for bit.
inline bool same_rows(const Matrix& a, const Matrix& b, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < a.columns; ++j)
      if (!(a(i, j) == b(i, j))) return false;
  return true;
}

}  // namespace qformer::test
