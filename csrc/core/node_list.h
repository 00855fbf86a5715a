// Small tensors are made and freed by the hundred in every step, on one thread: the memory of their storages waits in a
// list per thread, so that making one takes neither the C library's allocator nor a lock.
#pragma once

#include <cstddef>

namespace qformer {

namespace detail {
// A 64-byte aligned block of `bytes`, the same at every call. Throws std::bad_alloc.
void* take_node(size_t bytes);
// Any thread may give back what another one took.
void give_node_back(void* node) noexcept;
}  // namespace detail

// For std::allocate_shared of one type: there is one list, of nodes of one size.
template <class T>
struct NodeAllocator {
  using value_type = T;
  NodeAllocator() = default;
  template <class Other>
  explicit NodeAllocator(const NodeAllocator<Other>&) noexcept {}

  T* allocate(size_t) {
    static_assert(alignof(T) <= 64);
    return static_cast<T*>(detail::take_node((sizeof(T) + 63) / 64 * 64));
  }
  void deallocate(T* node, size_t) noexcept { detail::give_node_back(node); }
  template <class Other>
  bool operator==(const NodeAllocator<Other>&) const noexcept {
    return true;
  }
};

}  // namespace qformer
