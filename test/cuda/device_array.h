// Arrays in the memory of the emulated GPU, values of every activation dtype, and error bounds, for tests that compare
// an op with a double reference.
#pragma once

#include <cmath>
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

// Half a unit of the last place, relative: what rounding to `dtype` may cost.
inline double roundoff(int32_t dtype) { return dtype == QF_F16 ? 0x1p-11 : dtype == QF_BF16 ? 0x1p-8 : 0x1p-24; }

inline float rounded(float x, int32_t dtype) {
  if (dtype == QF_F16) return cuda::prims::to_float(cuda::prims::from_float<cuda::prims::Half>(x));
  if (dtype == QF_BF16) return cuda::prims::to_float(cuda::prims::from_float<cuda::prims::BFloat16>(x));
  return x;
}
inline std::vector<float> rounded(std::vector<float> values, int32_t dtype) {
  for (float& x : values) x = rounded(x, dtype);
  return values;
}

// Bytes on the device. `offset` shifts the start, to make rows that begin anywhere.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes, size_t offset = 0) : bytes_(bytes + offset), offset_(offset) {
    CHECK_EQ(backend().alloc(0, bytes_ == 0 ? 1 : bytes_, &data_), QF_OK);
  }
  ~DeviceBytes() { backend().free(0, data_, bytes_ == 0 ? 1 : bytes_); }
  DeviceBytes(const DeviceBytes&) = delete;

  void* data() const { return static_cast<char*>(data_) + offset_; }
  size_t size() const { return bytes_ - offset_; }
  void upload(const void* from) {
    if (size() > 0) CHECK_EQ(backend().upload(0, data(), from, size()), QF_OK);
  }
  std::vector<uint8_t> download() const {
    std::vector<uint8_t> out(size());
    if (size() > 0) CHECK_EQ(backend().download(0, out.data(), data(), size()), QF_OK);
    return out;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_, offset_;
};

inline std::vector<uint8_t> encoded(const std::vector<float>& values, int32_t dtype) {
  std::vector<uint8_t> bytes(values.size() * qf_dtype_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == QF_F32) {
      memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const uint16_t bits = dtype == QF_F16 ? cuda::prims::from_float<cuda::prims::Half>(values[i]).bits
                                            : cuda::prims::from_float<cuda::prims::BFloat16>(values[i]).bits;
      memcpy(&bytes[2 * i], &bits, 2);
    }
  }
  return bytes;
}

// Floats kept as `dtype`; `offset` in elements.
class DeviceArray {
 public:
  DeviceArray(const std::vector<float>& values, int32_t dtype, size_t offset = 0)
      : bytes_(values.size() * qf_dtype_size(dtype), offset * qf_dtype_size(dtype)), dtype_(dtype) {
    bytes_.upload(encoded(values, dtype).data());
  }
  void* data() const { return bytes_.data(); }
  float* floats() const { return static_cast<float*>(bytes_.data()); }
  std::vector<uint8_t> bytes() const { return bytes_.download(); }
  std::vector<float> read() const {
    const std::vector<uint8_t> bytes = bytes_.download();
    std::vector<float> values(bytes.size() / qf_dtype_size(dtype_));
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t bits = 0;
      if (dtype_ == QF_F32) {
        memcpy(&values[i], &bytes[4 * i], 4);
        continue;
      }
      memcpy(&bits, &bytes[2 * i], 2);
      values[i] = dtype_ == QF_F16 ? cuda::prims::to_float(cuda::prims::Half{bits})
                                   : cuda::prims::to_float(cuda::prims::BFloat16{bits});
    }
    return values;
  }

 private:
  DeviceBytes bytes_;
  int32_t dtype_;
};

class DeviceInts {
 public:
  explicit DeviceInts(const std::vector<int32_t>& values) : bytes_(values.size() * 4) { bytes_.upload(values.data()); }
  int32_t* data() const { return static_cast<int32_t*>(bytes_.data()); }

 private:
  DeviceBytes bytes_;
};

// rows of `cols` values, `ld` apart; the gap holds NaN, so that whoever reads it is found out.
inline std::vector<float> strided(const std::vector<float>& dense, int64_t rows, int64_t cols, int64_t ld) {
  std::vector<float> out(static_cast<size_t>(rows * ld), NAN);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) out[static_cast<size_t>(r * ld + c)] = dense[static_cast<size_t>(r * cols + c)];
  return out;
}

// One failed check with the first place and the number of places where |actual - expected| > tolerance (or NaN).
inline void check_close(const std::vector<float>& actual, const std::vector<double>& expected,
                        const std::vector<double>& tolerance, const std::string& what) {
  CHECK_EQ(actual.size(), expected.size());
  size_t bad = 0, first = 0;
  for (size_t i = 0; i < expected.size() && i < actual.size(); ++i) {
    if (std::abs(actual[i] - expected[i]) <= tolerance[i]) continue;
    if (bad++ == 0) first = i;
  }
  if (bad == 0) return;
  fail(__FILE__, __LINE__,
       what + ": " + std::to_string(bad) + " of " + std::to_string(expected.size()) + " wrong, first at " +
           std::to_string(first) + ": got " + std::to_string(actual[first]) + ", expected " +
           std::to_string(expected[first]) + " within " + std::to_string(tolerance[first]));
}

}  // namespace qformer::test
