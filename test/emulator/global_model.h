// Global<T> and device-scope atomics of prims/global.h, checked: bounds and alignment of every access and, in full
// mode, initialisation and races (shadow.h). Atomics and acquires now and then let another block run first.
#pragma once

#include "memory_order.h"
#include "prims/dtype.h"
#include "shadow.h"

namespace qformer::cuda::prims {

template <class T>
class Global {
 public:
  using Value = std::remove_const_t<T>;

  Global() = default;
  Global(T* data) : data_(data) {}
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  Global(Global<U> other) : data_(other.data()) {}
  explicit operator bool() const { return data_ != nullptr; }
  Global operator+(int64_t elements) const { return Global(data_ + elements); }
  T* data() const { return data_; }
  template <class U>
  Global<U> as() const {
    return Global<U>(reinterpret_cast<U*>(data_));
  }

  Value load(int64_t i, Site site = Site()) const { return read<Value>(i, site); }
  Value operator[](emulator::Index i) const { return read<Value>(i.value, i.site); }
  void store(int64_t i, Value value, Site site = Site()) const { write(i, value, site); }

  template <int N>
  Vec<Value, N> load_vec(int64_t i, Site site = Site()) const {
    return read<Vec<Value, N>>(i, site);
  }
  template <int N>
  void store_vec(int64_t i, Vec<Value, N> value, Site site = Site()) const {
    write(i, value, site);
  }
  template <int N>
  Vec<Value, N> load_vec_streaming(int64_t i, Site site = Site()) const {
    static_assert(N * sizeof(T) == 16 || N * sizeof(T) == 8 || N * sizeof(T) == 4, "4, 8 or 16 bytes");
    return read<Vec<Value, N>>(i, site);
  }

 private:
  template <class V>
  V read(int64_t i, Site site) const {
    const T* p = data_ + i;
    if constexpr (emulator::kChecked) {
      emulator::check_range(p, sizeof(V), "read", site);
      emulator::on_global_read(p, sizeof(V), site);
    }
    V value;
    memcpy(&value, p, sizeof(V));
    return value;
  }
  template <class V>
  void write(int64_t i, const V& value, Site site) const {
    static_assert(!std::is_const_v<T>, "a Global<const T> is read only");
    T* p = data_ + i;
    if constexpr (emulator::kChecked) {
      emulator::check_range(p, sizeof(V), "write", site);
      emulator::on_global_write(p, sizeof(V), site);
    }
    memcpy(static_cast<void*>(p), &value, sizeof(V));
  }

  T* data_ = nullptr;
};

// `update` maps the old value to the new one.
template <class T, class Update>
T atomic_update(Global<T> p, int64_t i, Site site, Update update) {
  T* address = p.data() + i;
  if constexpr (emulator::kChecked) {
    emulator::check_range(address, sizeof(T), "atomic", site);
    if (emulator::next_random() % 4 == 0) emulator::yield();
    emulator::on_global_atomic(address, sizeof(T), site);
    emulator::on_atomic(address);
  }
  const T old = *address;
  *address = update(old);
  return old;
}

inline int32_t atomic_add(Global<int32_t> p, int64_t i, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](int32_t old) { return old + v; });
}
inline uint32_t atomic_add(Global<uint32_t> p, int64_t i, uint32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](uint32_t old) { return old + v; });
}
inline float atomic_add(Global<float> p, int64_t i, float v, Site site = Site()) {
  return atomic_update(p, i, site, [v](float old) { return old + v; });
}
inline int32_t atomic_max(Global<int32_t> p, int64_t i, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](int32_t old) { return old > v ? old : v; });
}
inline uint32_t atomic_max(Global<uint32_t> p, int64_t i, uint32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](uint32_t old) { return old > v ? old : v; });
}
inline int32_t atomic_min(Global<int32_t> p, int64_t i, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](int32_t old) { return old < v ? old : v; });
}
inline uint32_t atomic_min(Global<uint32_t> p, int64_t i, uint32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](uint32_t old) { return old < v ? old : v; });
}
inline int32_t atomic_exchange(Global<int32_t> p, int64_t i, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](int32_t) { return v; });
}
inline uint32_t atomic_exchange(Global<uint32_t> p, int64_t i, uint32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](uint32_t) { return v; });
}
inline int32_t atomic_compare_exchange(Global<int32_t> p, int64_t i, int32_t expected, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [expected, v](int32_t old) { return old == expected ? v : old; });
}
inline uint32_t atomic_compare_exchange(Global<uint32_t> p, int64_t i, uint32_t expected, uint32_t v,
                                        Site site = Site()) {
  return atomic_update(p, i, site, [expected, v](uint32_t old) { return old == expected ? v : old; });
}
inline uint32_t atomic_inc(Global<uint32_t> p, int64_t i, uint32_t limit, Site site = Site()) {
  return atomic_update(p, i, site, [limit](uint32_t old) { return old >= limit ? 0u : old + 1; });
}

template <class T>
T load_acquire(Global<const T> p, int64_t i, Site site = Site()) {
  static_assert(sizeof(T) == 4, "load_acquire reads 4 bytes");
  const T* address = p.data() + i;
  emulator::yield();
  if constexpr (emulator::kChecked) {
    emulator::check_range(address, 4, "acquire", site);
    if (emulator::cell_of(address)->write_time == 0) emulator::global_uninitialized(address, site);
    emulator::on_acquire(address);
  }
  return *address;
}
template <class T>
T load_acquire(Global<T> p, int64_t i, Site site = Site()) {
  return load_acquire(Global<const T>(p), i, site);
}
template <class T>
void store_release(Global<T> p, int64_t i, std::common_type_t<T> value, Site site = Site()) {
  static_assert(sizeof(T) == 4, "store_release writes 4 bytes");
  T* address = p.data() + i;
  if constexpr (emulator::kChecked) {
    emulator::check_range(address, 4, "release", site);
    // As an atomic in the shadow: pollers read it at any time.
    emulator::Cell* cell = emulator::cell_of(address);
    cell[0] = {emulator::machine.clock, emulator::kAtomicWriter, cell[0].read_time, cell[0].reader};
    cell[1] = {emulator::machine.clock, emulator::kAtomicWriter, cell[1].read_time, cell[1].reader};
    emulator::on_release(address);
  }
  *address = value;
}

}  // namespace qformer::cuda::prims
