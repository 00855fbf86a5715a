// A model frees and allocates the same sizes at every step, and fresh pages cost a fault per 4 KiB: freed blocks wait
// in a free list per size class. Classes are an eighth of a power of two apart, so a block wastes at most 12.5 %. The
// lists hold at most kCacheLimit bytes; what does not fit goes back to the system.

#include "memory.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "error.h"

namespace qformer::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kCacheLimit = size_t{256} << 20;

struct BlockCache {
  std::mutex mutex;
  std::unordered_map<size_t, std::vector<void*>> free_blocks;
  size_t bytes = 0;
};

// Never destroyed: tensors may be freed while the process exits.
BlockCache& cache() {
  static BlockCache* const instance = new BlockCache;
  return *instance;
}

size_t size_class(size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  const size_t step = std::max(kAlignment, std::bit_floor(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

void* take_cached(size_t size) {
  BlockCache& blocks = cache();
  std::lock_guard<std::mutex> lock(blocks.mutex);
  const auto found = blocks.free_blocks.find(size);
  if (found == blocks.free_blocks.end() || found->second.empty()) return nullptr;
  void* block = found->second.back();
  found->second.pop_back();
  blocks.bytes -= size;
  return block;
}

bool keep_cached(void* block, size_t size) {
  BlockCache& blocks = cache();
  std::lock_guard<std::mutex> lock(blocks.mutex);
  if (size > kCacheLimit - std::min(blocks.bytes, kCacheLimit)) return false;
  blocks.free_blocks[size].push_back(block);
  blocks.bytes += size;
  return true;
}

void drop_cache() {
  BlockCache& blocks = cache();
  std::lock_guard<std::mutex> lock(blocks.mutex);
  for (auto& [size, list] : blocks.free_blocks) {
    for (void* block : list) std::free(block);
  }
  blocks.free_blocks.clear();
  blocks.bytes = 0;
}

int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;
}

int64_t meminfo(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  for (int64_t kib = 0; file >> name >> kib; std::getline(file, unit)) {
    if (name == field + ":") return kib * 1024;
  }
  return -1;
}

}  // namespace

QfStatus allocate(size_t bytes, void** out) {
  const bool representable = bytes <= SIZE_MAX / 4;
  const size_t size = representable ? size_class(bytes) : 0;
  *out = representable ? take_cached(size) : nullptr;
  // The kernel would grant far more than there is and end the process at first use, so what is available is asked
  // first.
  if (*out == nullptr && representable && (bytes < kCacheLimit || static_cast<int64_t>(bytes) <= available_memory())) {
    *out = std::aligned_alloc(kAlignment, size);
    if (*out == nullptr) {
      drop_cache();
      *out = std::aligned_alloc(kAlignment, size);
    }
  }
  if (*out != nullptr) return QF_OK;
  return fail(QF_OUT_OF_MEMORY, "cpu: cannot allocate %zu bytes, %lld bytes are free", bytes,
              static_cast<long long>(available_memory()));
}

void release(void* ptr, size_t bytes) {
  if (ptr != nullptr && !keep_cached(ptr, size_class(bytes))) std::free(ptr);
}

int64_t total_memory() { return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE); }

int64_t available_memory() {
  int64_t available = meminfo("MemAvailable");
  if (available < 0) available = static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit >= 0 && used >= 0) available = std::min(available, std::max<int64_t>(limit - used, 0));
  return available;
}

}  // namespace qformer::cpu
