// A tensor: a dtype, a shape and strides over reference-counted storage. Copying a Tensor shares the storage; a view is
// a Tensor with another shape, strides or offset. Storage is freed with its last Tensor.
#pragma once

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
  int64_t count() const;
  bool operator==(const Shape& other) const;
  // "[2, 257, 1408]"
  std::string text() const;

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

class GraphPool;

// A block of device memory, or a borrowed one whose owner is kept alive.
class Storage {
  struct Key {};  // makes the constructor unusable outside, yet open to make_shared

 public:
  Storage(Key, Device& device, void* data, int64_t bytes, bool read_only)
      : device(device), data(data), bytes(bytes), read_only(read_only) {}
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
  bool belongs_to(const GraphPool* pool) const { return pool != nullptr && pool_.get() == pool; }

 private:
  std::shared_ptr<void> owner_;      // set when borrowed
  std::shared_ptr<GraphPool> pool_;  // set when made while recording
};

struct Tensor {
  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // elements from the start of the storage
  Shape shape;
  std::array<int64_t, kMaxRank> strides{};  // elements
  int32_t dtype = QF_F32;

  Device& device() const { return storage->device; }
  int rank() const { return shape.rank(); }
  int64_t count() const { return shape.count(); }
  bool is_dense() const;
  void* data() const { return static_cast<char*>(storage->data) + offset * static_cast<int64_t>(qf_dtype_size(dtype)); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data());
  }
};

std::array<int64_t, kMaxRank> dense_strides(const Shape& shape);
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
