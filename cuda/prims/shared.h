// SharedMemory and Shared<T>: the dynamic shared memory of a block.
//
//   SharedMemory shared;
//   Shared<Half> tile = shared.take<Half>(rows * columns);   // carved in order, each piece 128-byte aligned
//
// Every thread carves the same pieces in the same order. The bytes to ask for at launch are shared_bytes<T>(count)
// summed over the pieces. On the device a Shared<T> is a bare pointer; emulated, accesses are checked (bounds of the
// piece, alignment, initialised, races, bank conflicts).
#pragma once

#include "prims/dtype.h"
#include "prims/global.h"

namespace qformer::cuda::prims {

inline constexpr int kSharedAlignment = 128;

// Bytes that SharedMemory::take<T>(count) consumes.
template <class T>
QF_HOST_DEVICE constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

}  // namespace qformer::cuda::prims

#ifdef QF_EMULATED
#include "shared_model.h"
#else

namespace qformer::cuda::prims {

template <class T>
class Shared {
 public:
  using Value = std::remove_const_t<T>;

  Shared() = default;
  QF_DEVICE explicit Shared(T* data) : data_(data) {}
  // A Shared<T> is a Shared<const T>.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T> > >
  QF_DEVICE Shared(Shared<U> other) : data_(other.data()) {}
  QF_DEVICE Shared operator+(int elements) const { return Shared(data_ + elements); }
  QF_DEVICE T* data() const { return data_; }
  // The 32-bit address in the shared window, as ldmatrix and cp.async take it.
  QF_DEVICE uint32_t address() const { return static_cast<uint32_t>(__cvta_generic_to_shared(data_)); }
  // The same piece read as another type.
  template <class U>
  QF_DEVICE Shared<U> as() const {
    return Shared<U>(reinterpret_cast<U*>(data_));
  }

  QF_DEVICE Value load(int i) const { return data_[i]; }
  QF_DEVICE Value operator[](int i) const { return data_[i]; }
  QF_DEVICE void store(int i, Value value) const { data_[i] = value; }
  template <int N>
  QF_DEVICE Vec<Value, N> load_vec(int i) const {
    return *reinterpret_cast<const Vec<Value, N>*>(data_ + i);
  }
  template <int N>
  QF_DEVICE void store_vec(int i, Vec<Value, N> value) const {
    *reinterpret_cast<Vec<Value, N>*>(data_ + i) = value;
  }

 private:
  T* data_ = nullptr;
};

class SharedMemory {
 public:
  QF_DEVICE SharedMemory() {}
  template <class T>
  QF_DEVICE Shared<T> take(int count) {
    extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];
    T* piece = reinterpret_cast<T*>(dynamic_shared_memory + used_);
    used_ += static_cast<uint32_t>(shared_bytes<T>(static_cast<size_t>(count)));
    return Shared<T>(piece);
  }

 private:
  uint32_t used_ = 0;
};

QF_DEVICE int32_t atomic_add(Shared<int32_t> p, int i, int32_t v) { return atomicAdd(p.data() + i, v); }
QF_DEVICE uint32_t atomic_add(Shared<uint32_t> p, int i, uint32_t v) { return atomicAdd(p.data() + i, v); }
QF_DEVICE int32_t atomic_max(Shared<int32_t> p, int i, int32_t v) { return atomicMax(p.data() + i, v); }
QF_DEVICE uint32_t atomic_max(Shared<uint32_t> p, int i, uint32_t v) { return atomicMax(p.data() + i, v); }
QF_DEVICE int32_t atomic_min(Shared<int32_t> p, int i, int32_t v) { return atomicMin(p.data() + i, v); }

}  // namespace qformer::cuda::prims

#endif
