// Global<T>: a pointer to device memory. Kernels read and write global memory through it and in no other way.
//
// On the device it is a bare pointer; emulated, every access is checked (bounds, alignment, initialised, races).
// Indices count elements. A vector access moves N elements in one instruction and needs its address aligned to its own
// size. Atomics and acquire / release order memory at device scope (PTX ISA, memory consistency model).
#pragma once

#include <type_traits>

#include "prims/dtype.h"

#ifdef QF_EMULATED
#include "global_model.h"
#else

namespace qformer::cuda::prims {

template <class T>
class Global {
 public:
  using Value = std::remove_const_t<T>;

  Global() = default;
  QF_HOST_DEVICE Global(T* data) : data_(data) {}
  // A Global<T> is a Global<const T>.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T> > >
  QF_HOST_DEVICE Global(Global<U> other) : data_(other.data()) {}
  QF_HOST_DEVICE explicit operator bool() const { return data_ != nullptr; }
  QF_HOST_DEVICE Global operator+(int64_t elements) const { return Global(data_ + elements); }
  QF_HOST_DEVICE T* data() const { return data_; }
  // The same address read as another type.
  template <class U>
  QF_HOST_DEVICE Global<U> as() const {
    return Global<U>(reinterpret_cast<U*>(data_));
  }

  QF_DEVICE Value load(int64_t i) const { return data_[i]; }
  QF_DEVICE Value operator[](int64_t i) const { return data_[i]; }
  QF_DEVICE void store(int64_t i, Value value) const { data_[i] = value; }

  template <int N>
  QF_DEVICE Vec<Value, N> load_vec(int64_t i) const {
    return *reinterpret_cast<const Vec<Value, N>*>(data_ + i);
  }
  template <int N>
  QF_DEVICE void store_vec(int64_t i, Vec<Value, N> value) const {
    *reinterpret_cast<Vec<Value, N>*>(data_ + i) = value;
  }
  // For bytes that are read once, such as the weights of a decode step: past L1, first to be evicted from L2.
  template <int N>
  QF_DEVICE Vec<Value, N> load_vec_streaming(int64_t i) const {
    static_assert(N * sizeof(T) == 16 || N * sizeof(T) == 8 || N * sizeof(T) == 4, "4, 8 or 16 bytes");
    const T* address = data_ + i;
    if constexpr (N * sizeof(T) == 16) {
      uint4 r;
      asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                   : "l"(address));
      return bit_cast<Vec<Value, N> >(r);
    } else if constexpr (N * sizeof(T) == 8) {
      uint2 r;
      asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(address));
      return bit_cast<Vec<Value, N> >(r);
    } else {
      uint32_t r;
      asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(r) : "l"(address));
      return bit_cast<Vec<Value, N> >(r);
    }
  }

 private:
  T* data_ = nullptr;
};

// Each returns the value before the operation.
QF_DEVICE int32_t atomic_add(Global<int32_t> p, int64_t i, int32_t v) { return atomicAdd(p.data() + i, v); }
QF_DEVICE uint32_t atomic_add(Global<uint32_t> p, int64_t i, uint32_t v) { return atomicAdd(p.data() + i, v); }
QF_DEVICE float atomic_add(Global<float> p, int64_t i, float v) { return atomicAdd(p.data() + i, v); }
QF_DEVICE int32_t atomic_max(Global<int32_t> p, int64_t i, int32_t v) { return atomicMax(p.data() + i, v); }
QF_DEVICE uint32_t atomic_max(Global<uint32_t> p, int64_t i, uint32_t v) { return atomicMax(p.data() + i, v); }
QF_DEVICE int32_t atomic_min(Global<int32_t> p, int64_t i, int32_t v) { return atomicMin(p.data() + i, v); }
QF_DEVICE uint32_t atomic_min(Global<uint32_t> p, int64_t i, uint32_t v) { return atomicMin(p.data() + i, v); }
QF_DEVICE int32_t atomic_exchange(Global<int32_t> p, int64_t i, int32_t v) { return atomicExch(p.data() + i, v); }
QF_DEVICE uint32_t atomic_exchange(Global<uint32_t> p, int64_t i, uint32_t v) { return atomicExch(p.data() + i, v); }
// Stores `v` where `expected` stands.
QF_DEVICE int32_t atomic_compare_exchange(Global<int32_t> p, int64_t i, int32_t expected, int32_t v) {
  return atomicCAS(p.data() + i, expected, v);
}
QF_DEVICE uint32_t atomic_compare_exchange(Global<uint32_t> p, int64_t i, uint32_t expected, uint32_t v) {
  return atomicCAS(p.data() + i, expected, v);
}
// Counts 0, 1, … limit, 0: after limit + 1 calls the counter is back at zero.
QF_DEVICE uint32_t atomic_inc(Global<uint32_t> p, int64_t i, uint32_t limit) { return atomicInc(p.data() + i, limit); }

template <class T>
QF_DEVICE T load_acquire(Global<const T> p, int64_t i) {
  static_assert(sizeof(T) == 4, "load_acquire reads 4 bytes");
  uint32_t bits;
  asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(bits) : "l"(p.data() + i) : "memory");
  return bit_cast<T>(bits);
}
template <class T>
QF_DEVICE T load_acquire(Global<T> p, int64_t i) {
  return load_acquire(Global<const T>(p), i);
}
template <class T>
QF_DEVICE void store_release(Global<T> p, int64_t i, T value) {
  static_assert(sizeof(T) == 4, "store_release writes 4 bytes");
  asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(p.data() + i), "r"(bit_cast<uint32_t>(value)) : "memory");
}

}  // namespace qformer::cuda::prims

#endif
