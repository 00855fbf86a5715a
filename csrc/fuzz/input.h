// Turns fuzzer bytes into numbers, shapes and tensors. Running out of bytes yields zeros, so that every prefix is an
// input.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace qformer::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }
  uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  // Uniform in [0, bound).
  int64_t below(int64_t bound) { return static_cast<int64_t>((byte() | (byte() << 8)) % bound); }
  // A small extent; rarely a negative or huge one, which ops must refuse.
  int64_t extent(int64_t usual) {
    const uint8_t choice = byte();
    if (choice == 255) return int64_t{1} << (40 + byte() % 23);  // beyond any memory
    if (choice == 254) return -static_cast<int64_t>(byte());
    return choice % (usual + 1);
  }
  int64_t wide() {
    int64_t value = 0;
    for (int i = 0; i < 8; ++i) value = static_cast<int64_t>((static_cast<uint64_t>(value) << 8) | byte());
    return value >> (byte() % 64);
  }
  float number() { return static_cast<float>(static_cast<int8_t>(byte())) / 16.0f; }
  std::string rest() {
    std::string bytes(reinterpret_cast<const char*>(data_), size_);
    size_ = 0;
    return bytes;
  }

  // A tensor of this shape with small numbers; i32 entries lie around the range of small shapes, so that they are often
  // valid.
  Tensor tensor(Device& device, const Shape& shape, int32_t dtype) {
    const int64_t count = shape.count();
    if (count > 4096) fail(ErrorCode::kShape, "too large for a fuzzer");
    Tensor x = empty_tensor(device, shape, dtype);
    std::vector<uint8_t> bytes(static_cast<size_t>(count) * qf_dtype_size(dtype));
    for (int64_t i = 0; i < count; ++i) {
      if (dtype == QF_F32) {
        const float value = number();
        std::memcpy(&bytes[static_cast<size_t>(i) * 4], &value, 4);
      } else if (dtype == QF_I32) {
        const uint8_t choice = byte();
        const int32_t value = choice == 255 ? static_cast<int32_t>(wide()) : choice % 12 - (choice > 250 ? 12 : 0);
        std::memcpy(&bytes[static_cast<size_t>(i) * 4], &value, 4);
      } else {
        for (size_t b = 0; b < qf_dtype_size(dtype); ++b)
          bytes[static_cast<size_t>(i) * qf_dtype_size(dtype) + b] = byte();
      }
    }
    upload(x, bytes.data(), static_cast<int64_t>(bytes.size()));
    return x;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// Reads every element, so that a sanitizer sees what an op left unwritten or out of bounds.
inline void touch(const Tensor& x) {
  if (!x.is_dense()) return;
  std::vector<uint8_t> bytes(static_cast<size_t>(x.count()) * qf_dtype_size(x.dtype) + 1);
  download(x, bytes.data(), static_cast<int64_t>(bytes.size()) - 1);
}

}  // namespace qformer::fuzz
