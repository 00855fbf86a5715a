// SharedMemory and Shared<T> of prims/shared.h, checked: a Shared<T> knows its piece, and an access outside it,
// misaligned, of bytes nobody wrote, or unordered with another thread's is reported.
#pragma once

#ifdef QF_EMULATOR_UNCHECKED
#include "shared_unchecked.h"
#else

#include "bank_conflicts.h"
#include "prims/dtype.h"
#include "shadow.h"

namespace qformer::emulator {

// Byte `offset` of shared memory, inside the piece [begin, end).
struct SharedPlace {
  int64_t offset = 0;
  uint32_t begin = 0, end = 0;
};

[[noreturn]] void shared_range_fault(const SharedPlace& place, uint32_t bytes, const char* what, Site site);

inline uint8_t* check_shared(const SharedPlace& place, uint32_t bytes, const char* what, Site site) {
  if (__builtin_expect(place.offset < place.begin || place.offset + bytes > place.end || (place.offset & (bytes - 1)),
                       0))
    shared_range_fault(place, bytes, what, site);
  return machine.current->block->shared + place.offset;
}

// Carves `bytes` at `begin` as piece number `piece` of the current thread; reports a thread that carves otherwise than
// the first did, and a piece past the bytes of the launch.
void carve(uint32_t piece, uint32_t begin, uint64_t bytes, Site site);

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
  Shared operator+(int64_t elements) const {
    emulator::SharedPlace moved = place_;
    moved.offset += elements * static_cast<int64_t>(sizeof(T));
    return Shared(moved);
  }
  template <class U>
  Shared<U> as() const {
    return Shared<U>(place_);
  }
  const emulator::SharedPlace& place() const { return place_; }
  uint32_t address() const { return static_cast<uint32_t>(place_.offset); }

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

 private:
  template <class V>
  V read(int64_t i, Site site) const {
    const emulator::SharedPlace place = (*this + i).place_;
    const uint8_t* p = emulator::check_shared(place, sizeof(V), "read", site);
    emulator::on_shared_read(place.offset, sizeof(V), site);
    if (emulator::machine.count_banks) emulator::count_access(place.offset, sizeof(V), site);
    V value;
    memcpy(&value, p, sizeof(V));
    return value;
  }
  template <class V>
  void write(int64_t i, const V& value, Site site) const {
    static_assert(!std::is_const_v<T>, "a Shared<const T> is read only");
    const emulator::SharedPlace place = (*this + i).place_;
    uint8_t* p = emulator::check_shared(place, sizeof(V), "write", site);
    emulator::on_shared_write(place.offset, sizeof(V), site);
    if (emulator::machine.count_banks) emulator::count_access(place.offset, sizeof(V), site);
    memcpy(p, &value, sizeof(V));
  }

  emulator::SharedPlace place_;
};

class SharedMemory {
 public:
  template <class T>
  Shared<T> take(int64_t count, Site site = Site()) {
    const uint64_t bytes = static_cast<uint64_t>(count) * sizeof(T);
    emulator::carve(pieces_++, used_, bytes, site);
    const emulator::SharedPlace place{used_, used_, static_cast<uint32_t>(used_ + bytes)};
    used_ += static_cast<uint32_t>(shared_bytes<T>(static_cast<size_t>(count)));
    return Shared<T>(place);
  }

 private:
  uint32_t used_ = 0, pieces_ = 0;
};

template <class T, class Update>
T atomic_update(Shared<T> p, int64_t i, Site site, Update update) {
  const emulator::SharedPlace place = (p + i).place();
  uint8_t* address = emulator::check_shared(place, sizeof(T), "atomic", site);
  emulator::on_shared_atomic(static_cast<uint32_t>(place.offset), sizeof(T), site);
  T old;
  memcpy(&old, address, sizeof(T));
  const T value = update(old);
  memcpy(address, &value, sizeof(T));
  return old;
}

}  // namespace qformer::cuda::prims

#endif

namespace qformer::cuda::prims {

inline int32_t atomic_add(Shared<int32_t> p, int i, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](int32_t old) { return old + v; });
}
inline uint32_t atomic_add(Shared<uint32_t> p, int i, uint32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](uint32_t old) { return old + v; });
}
inline int32_t atomic_max(Shared<int32_t> p, int i, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](int32_t old) { return old > v ? old : v; });
}
inline uint32_t atomic_max(Shared<uint32_t> p, int i, uint32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](uint32_t old) { return old > v ? old : v; });
}
inline int32_t atomic_min(Shared<int32_t> p, int i, int32_t v, Site site = Site()) {
  return atomic_update(p, i, site, [v](int32_t old) { return old < v ? old : v; });
}

}  // namespace qformer::cuda::prims
