// One growing buffer per slot and thread. A buffer far larger than its recent use is not shrunk: the pool's threads
// live as long as the process and a model repeats its shapes.

#include "scratch.h"

#include <cstdlib>
#include <new>

namespace qformer::cpu {
namespace {

struct Buffers {
  void* data[static_cast<size_t>(Scratch::kCount)] = {};
  size_t size[static_cast<size_t>(Scratch::kCount)] = {};

  ~Buffers() {
    for (void* pointer : data) std::free(pointer);
  }
};

thread_local Buffers buffers;

}  // namespace

void* thread_scratch(Scratch slot, size_t bytes) {
  const size_t index = static_cast<size_t>(slot);
  if (bytes <= buffers.size[index]) return buffers.data[index];
  std::free(buffers.data[index]);
  buffers.size[index] = 0;
  const size_t rounded = (bytes + 4095) & ~size_t{4095};
  buffers.data[index] = std::aligned_alloc(64, rounded);
  if (buffers.data[index] == nullptr) throw std::bad_alloc();
  buffers.size[index] = rounded;
  return buffers.data[index];
}

}  // namespace qformer::cpu
