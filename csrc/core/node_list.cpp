#include "core/node_list.h"

#include <cstdint>
#include <cstdlib>
#include <new>

namespace qformer::detail {
namespace {

// A quarter of a megabyte per thread.
constexpr uint32_t kMostWaiting = 1024;

struct Node {
  Node* next;
};

// Without a destructor, so that reaching it takes no check for a first use.
struct List {
  Node* first = nullptr;
  uint32_t length = 0;
  bool has_ended = false;
};
thread_local List list;

struct FreeAtThreadEnd {
  ~FreeAtThreadEnd() {
    while (Node* node = list.first) {
      list.first = node->next;
      std::free(node);
    }
    list.has_ended = true;
  }
};

}  // namespace

void* take_node(size_t bytes) {
  List& mine = list;
  if (Node* node = mine.first) {
    mine.first = node->next;
    --mine.length;
    return node;
  }
  void* node = std::aligned_alloc(64, bytes);
  if (node == nullptr) throw std::bad_alloc();
  return node;
}

void give_node_back(void* memory) noexcept {
  List& mine = list;
  if (mine.length == kMostWaiting || mine.has_ended) return std::free(memory);
  if (mine.length == 0) {
    thread_local FreeAtThreadEnd free_at_thread_end;
    (void)free_at_thread_end;
  }
  mine.first = new (memory) Node{mine.first};
  ++mine.length;
}

}  // namespace qformer::detail
