// Integer handles with generations. A handle is slot + generation · 2²², an exact double in JavaScript; reusing a slot
// changes its generation, so that a stale handle is recognised instead of naming somebody else's object.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace qformer::napi {

using Handle = int64_t;
inline constexpr int kSlotBits = 22;
inline constexpr int64_t kMaxSlots = int64_t{1} << kSlotBits;
inline constexpr int64_t kMaxGeneration = (int64_t{1} << 31) - 1;

template <class T>
class Slots {
 public:
  // The handle of a new T made from `args`, never 0; 0 when every slot is in use.
  template <class... Args>
  Handle add(Args&&... args) {
    if (free_.empty()) {
      if (static_cast<int64_t>(entries_.size()) == kMaxSlots) return 0;
      free_.push_back(static_cast<int64_t>(entries_.size()));
      entries_.emplace_back();
    }
    const int64_t slot = free_.back();
    free_.pop_back();
    Entry& entry = entries_[static_cast<size_t>(slot)];
    entry.value.emplace(std::forward<Args>(args)...);
    return slot + (entry.generation << kSlotBits);
  }

  // Null for a handle that was removed or never given out.
  T* find(Handle handle) {
    const auto slot = static_cast<size_t>(handle & (kMaxSlots - 1));
    if (handle <= 0 || slot >= entries_.size()) return nullptr;
    Entry& entry = entries_[slot];
    return entry.generation == (handle >> kSlotBits) && entry.value.has_value() ? &*entry.value : nullptr;
  }

  bool remove(Handle handle) {
    return remove_if(handle, [](const T&) { return true; });
  }

  // Removes what `condition` is true of; false where it is not, and for a stale handle.
  template <class Condition>
  bool remove_if(Handle handle, const Condition& condition) {
    const T* found = find(handle);
    if (found == nullptr || !condition(*found)) return false;
    const int64_t slot = handle & (kMaxSlots - 1);
    Entry& entry = entries_[static_cast<size_t>(slot)];
    // Out of the table first: releasing the value must not see itself here.
    std::optional<T> value = std::move(entry.value);
    entry.value.reset();
    entry.generation = entry.generation == kMaxGeneration ? 1 : entry.generation + 1;
    free_.push_back(slot);
    return true;
  }

  int64_t live() const { return static_cast<int64_t>(entries_.size() - free_.size()); }

 private:
  struct Entry {
    std::optional<T> value;
    int64_t generation = 1;
  };
  std::vector<Entry> entries_;
  std::vector<int64_t> free_;
};

}  // namespace qformer::napi
