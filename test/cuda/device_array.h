// Arrays on the emulated device for tests of ops: uploaded at construction, freed at the end of the scope.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "prims/dtype.h"
#include "test.h"

extern "C" const QfBackend* qformer_backend(uint32_t abi);

namespace qformer::test {

inline const QfBackend& backend() { return *qformer_backend(QF_BACKEND_ABI); }

// `count` elements of `V`; no element is as good as any other: the pointer is never null.
template <class V>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) { CHECK_EQ(backend().alloc(0, capacity(), &data_), QF_OK); }
  DeviceArray(const std::vector<V>& values) : DeviceArray(values.size()) { write(values); }
  ~DeviceArray() { backend().free(0, data_, capacity()); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  V* data() const { return static_cast<V*>(data_); }
  size_t size() const { return count_; }
  void write(const std::vector<V>& values) {
    if (!values.empty()) CHECK_EQ(backend().upload(0, data_, values.data(), values.size() * sizeof(V)), QF_OK);
  }
  std::vector<V> read() const {
    std::vector<V> values(count_);
    if (count_ > 0) CHECK_EQ(backend().download(0, values.data(), data_, count_ * sizeof(V)), QF_OK);
    return values;
  }

 private:
  size_t capacity() const { return (count_ > 0 ? count_ : 1) * sizeof(V); }
  void* data_ = nullptr;
  size_t count_;
};

// What a value becomes in f32, f16 or bf16.
inline float rounded(int32_t dtype, float value) {
  if (dtype == QF_F16) return cuda::to_float(cuda::from_float<cuda::Half>(value));
  if (dtype == QF_BF16) return cuda::to_float(cuda::from_float<cuda::BFloat16>(value));
  return value;
}

// Floats stored as f32, f16 or bf16. `values` holds them as the device sees them, after rounding.
class FloatArray {
 public:
  FloatArray(int32_t dtype, size_t count) : dtype_(dtype), bytes_(count * qf_dtype_size(dtype)), count_(count) {}
  FloatArray(int32_t dtype, std::vector<float> data) : FloatArray(dtype, data.size()) {
    values = std::move(data);
    std::vector<uint8_t> bytes(bytes_.size());
    for (size_t i = 0; i < count_; ++i) {
      values[i] = rounded(dtype, values[i]);
      if (dtype == QF_F32) {
        memcpy(&bytes[i * 4], &values[i], 4);
      } else {
        const uint16_t bits = dtype == QF_F16 ? cuda::from_float<cuda::Half>(values[i]).bits
                                              : cuda::from_float<cuda::BFloat16>(values[i]).bits;
        memcpy(&bytes[i * 2], &bits, 2);
      }
    }
    bytes_.write(bytes);
  }

  int32_t dtype() const { return dtype_; }
  size_t size() const { return count_; }
  void* data() const { return bytes_.data(); }
  // Address of element `i`.
  void* at(int64_t i) const { return bytes_.data() + i * static_cast<int64_t>(qf_dtype_size(dtype_)); }
  std::vector<float> read() const {
    const std::vector<uint8_t> bytes = bytes_.read();
    std::vector<float> floats(count_);
    for (size_t i = 0; i < count_; ++i) {
      uint16_t bits = 0;
      if (dtype_ != QF_F32) memcpy(&bits, &bytes[i * 2], 2);
      if (dtype_ == QF_F32) memcpy(&floats[i], &bytes[i * 4], 4);
      if (dtype_ == QF_F16) floats[i] = cuda::to_float(cuda::Half{bits});
      if (dtype_ == QF_BF16) floats[i] = cuda::to_float(cuda::BFloat16{bits});
    }
    return floats;
  }

  std::vector<float> values;

 private:
  int32_t dtype_;
  DeviceArray<uint8_t> bytes_;
  size_t count_;
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
