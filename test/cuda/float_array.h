// Arrays of the attention tests: floats in any activation dtype beside what the device sees of them, numbers of any
// type, and the distance of a result from the expected one.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "device_array.h"

namespace qformer::test {

// `count` elements of V on the device.
template <class V>
class TypedArray {
 public:
  explicit TypedArray(const std::vector<V>& values) : bytes_(values.size() * sizeof(V)) { write(values); }
  V* data() const { return static_cast<V*>(bytes_.data()); }
  void write(const std::vector<V>& values) { bytes_.upload(values.data()); }

 private:
  DeviceBytes bytes_;
};

// Floats stored as f32, f16 or bf16, NaN until they are written. `values` holds them as the device sees them, after
// rounding.
class FloatArray {
 public:
  FloatArray(int32_t dtype, size_t count) : values(count, NAN), dtype_(dtype), array_(values, dtype) {}
  FloatArray(int32_t dtype, const std::vector<float>& data)
      : values(rounded(data, dtype)), dtype_(dtype), array_(values, dtype) {}

  size_t size() const { return values.size(); }
  void* data() const { return array_.data(); }
  // Address of element `i`.
  void* at(int64_t i) const {
    return static_cast<char*>(array_.data()) + i * static_cast<int64_t>(qf_dtype_size(dtype_));
  }
  std::vector<float> read() const { return array_.read(); }

  std::vector<float> values;

 private:
  int32_t dtype_;
  DeviceArray array_;
};

// The largest distance of two equally long rows of numbers; NaN where either has one.
template <class A, class B>
double max_difference(const std::vector<A>& a, const std::vector<B>& b) {
  CHECK_EQ(a.size(), b.size());
  double worst = 0.0;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(difference <= worst)) worst = difference;
  }
  return worst;
}

}  // namespace qformer::test
