// A tensor: a dtype, a shape and strides over reference-counted storage. Copying a Tensor shares the storage; a view is
// a Tensor with another shape, strides or offset. Storage is freed with its last Tensor.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "backend/dtype.h"
#include "core/device.h"

namespace qformer {

inline constexpr int kMaxRank = 4;

// Up to kMaxRank extents, held in place.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents);
  void push_back(int64_t extent);

  int rank() const { return rank_; }
  int64_t operator[](int axis) const { return extents_[axis]; }
  int64_t& operator[](int axis) { return extents_[axis]; }
  int64_t back() const { return extents_[rank_ - 1]; }
  // Product of all extents. SHAPE on a negative extent or an overflow.
  int64_t count() const {
    // Zero extents are left out of the product: the strides of an empty tensor must not overflow either.
    int64_t product = 1;
    bool empty = false;
    for (int axis = 0; axis < rank_; ++axis) {
      const int64_t extent = extents_[axis];
      empty = empty || extent == 0;
      if (extent < 0 || __builtin_mul_overflow(product, std::max<int64_t>(extent, 1), &product) ||
          product > kMaxCount) {
        refuse();
      }
    }
    return empty ? 0 : product;
  }
  bool operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int axis = 0; axis < rank_; ++axis) {
      if (extents_[axis] != other.extents_[axis]) return false;
    }
    return true;
  }
  // "[2, 257, 1408]"
  std::string text() const;

 private:
  // More than any memory holds, and so little that sizes and strides derived from a shape stay far from overflow.
  static constexpr int64_t kMaxCount = int64_t{1} << 46;
  [[noreturn]] void refuse() const;

  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

inline std::array<int64_t, kMaxRank> dense_strides(const Shape& shape) {
  std::array<int64_t, kMaxRank> strides{};
  int64_t stride = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
}

class GraphPool;

// A block of device memory, or a borrowed one whose owner is kept alive.
class Storage {
 protected:
  struct Key {};  // makes the constructor unusable outside, yet open to make_shared
  enum class Memory : uint8_t { kDevice, kPool, kBorrowed, kInside };

 public:
  Storage(Key, Device& device, void* data, int64_t bytes, Memory memory)
      : device(device), data(data), bytes(bytes), read_only(memory == Memory::kBorrowed), memory_(memory) {}
  // Allocates; from the pool of the graph being recorded on this thread, if any. OUT_OF_MEMORY.
  static std::shared_ptr<Storage> allocate(Device& device, int64_t bytes);
  // Wraps host memory (a mapped file) that stays valid as long as `owner` lives.
  static std::shared_ptr<Storage> borrow(Device& device, const void* data, int64_t bytes, std::shared_ptr<void> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Device& device;
  void* const data;
  const int64_t bytes;
  const bool read_only;

  // True when made by the recording that `pool` belongs to.
  bool belongs_to(const GraphPool* pool) const;

 private:
  const Memory memory_;
  std::shared_ptr<void> owner_;  // of kBorrowed; of kPool: its GraphPool
};

struct Tensor {
  // A dense tensor in new storage of `bytes`, made in its place: moving it there costs a tenth of a small op.
  Tensor(Device& device, int64_t bytes, const Shape& shape, int32_t dtype)
      : storage(Storage::allocate(device, bytes)), shape(shape), strides(dense_strides(shape)), dtype(dtype) {}
  // A dense tensor at the start of `storage`.
  Tensor(std::shared_ptr<Storage> storage, const Shape& shape, int32_t dtype)
      : storage(std::move(storage)), shape(shape), strides(dense_strides(shape)), dtype(dtype) {}

  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // elements from the start of the storage
  Shape shape;
  std::array<int64_t, kMaxRank> strides;  // elements
  int32_t dtype;

  Device& device() const { return storage->device; }
  int rank() const { return shape.rank(); }
  int64_t count() const { return shape.count(); }
  bool is_dense() const {
    int64_t stride = 1;
    for (int axis = rank() - 1; axis >= 0; --axis) {
      if (shape[axis] == 0) return true;
      if (shape[axis] != 1 && strides[axis] != stride) return false;
      stride *= shape[axis];
    }
    return true;
  }
  void* data() const { return static_cast<char*>(storage->data) + offset * static_cast<int64_t>(qf_dtype_size(dtype)); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data());
  }
};

Tensor empty_tensor(Device& device, const Shape& shape, int32_t dtype);
Tensor zeros_tensor(Device& device, const Shape& shape, int32_t dtype);

// Views; all throw SHAPE or INVALID_ARGUMENT when the request does not fit.
Tensor reshape(const Tensor& x, const Shape& shape);  // dense tensors only
Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t end);
Tensor select(const Tensor& x, int64_t axis, int64_t index);
Tensor transpose(const Tensor& x, int64_t axis_a, int64_t axis_b);

// Host transfers of dense tensors; `bytes` must match. Refused while a graph is recorded.
void upload(const Tensor& x, const void* source, int64_t bytes);
void download(const Tensor& x, void* target, int64_t bytes);

}  // namespace qformer
