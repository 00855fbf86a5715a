// SharedMemory and Shared<T> of prims/shared.h without checks: a bare pointer, as on the device.
#pragma once

#include <cstring>

#include "machine.h"
#include "prims/dtype.h"

namespace qformer::emulator {

struct SharedPlace {
  uint8_t* address = nullptr;
};

}  // namespace qformer::emulator

namespace qformer::cuda::prims {

template <class T>
class Shared {
 public:
  using Value = std::remove_const_t<T>;

  Shared() = default;
  explicit Shared(emulator::SharedPlace place) : place_(place) {}
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T>>>
  Shared(Shared<U> other) : place_(other.place()) {}
  Shared operator+(int64_t elements) const { return Shared({at(elements)}); }
  template <class U>
  Shared<U> as() const {
    return Shared<U>(place_);
  }
  emulator::SharedPlace place() const { return place_; }
  uint32_t address() const {
    return static_cast<uint32_t>(place_.address - emulator::machine.current->block->shared);
  }

  Value load(int64_t i) const { return read<Value>(i); }
  Value operator[](int64_t i) const { return read<Value>(i); }
  void store(int64_t i, Value value) const { write(i, value); }
  template <int N>
  Vec<Value, N> load_vec(int64_t i) const {
    return read<Vec<Value, N>>(i);
  }
  template <int N>
  void store_vec(int64_t i, Vec<Value, N> value) const {
    write(i, value);
  }

 private:
  uint8_t* at(int64_t i) const { return place_.address + i * static_cast<int64_t>(sizeof(T)); }
  template <class V>
  V read(int64_t i) const {
    V value;
    memcpy(&value, at(i), sizeof(V));
    return value;
  }
  template <class V>
  void write(int64_t i, const V& value) const {
    static_assert(!std::is_const_v<T>, "a Shared<const T> is read only");
    memcpy(at(i), &value, sizeof(V));
  }

  emulator::SharedPlace place_;
};

class SharedMemory {
 public:
  template <class T>
  Shared<T> take(int64_t count) {
    uint8_t* piece = emulator::machine.current->block->shared + used_;
    used_ += static_cast<uint32_t>(shared_bytes<T>(static_cast<size_t>(count)));
    return Shared<T>({piece});
  }

 private:
  uint32_t used_ = 0;
};

template <class T, class Update>
T atomic_update(Shared<T> p, int64_t i, emulator::Site, Update update) {
  const T old = p.load(i);
  p.store(i, update(old));
  return old;
}

}  // namespace qformer::cuda::prims
