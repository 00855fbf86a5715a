// A model frees and allocates the same sizes at every step, and fresh pages cost a fault per 4 KiB: freed blocks wait
// in a free list per size class. Classes are an eighth of a power of two apart, so a block wastes at most 12.5 %. The
// lists hold at most kCacheLimit bytes; what does not fit goes back to the system. Large blocks are backed by huge
// pages where the system grants them: a product that streams through 4-KiB pages loses a tenth of its bandwidth to
// misses in the TLB.

#include "memory.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cpu_backend.h"
#include "error.h"

namespace qformer::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kCacheLimit = size_t{256} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

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

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

size_t size_class(size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  return round_up(bytes, std::max(kAlignment, std::bit_floor(bytes) / 8));
}

// Bytes of the mapping of a block: whole huge pages, unless more than an eighth would be waste.
size_t mapped_size(size_t size) {
  const size_t whole = round_up(size, kHugePage);
  return whole - size <= size / 8 ? whole : size;
}

// A mapping of its own that starts at a huge page. Not from malloc: its arenas would keep the freed block, and the
// advice on its pages.
void* map_huge(size_t size) {
  const size_t reserved = size + kHugePage;
  void* mapped = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before > 0) munmap(begin, before);
  if (before < kHugePage) munmap(begin + before + size, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  // The whole huge pages; a refusal leaves ordinary ones.
  madvise(begin + before, size / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return begin + before;
}

// `size` is a size class. Null where there is no memory.
void* new_block(size_t size) {
  return size < kHugePage ? std::aligned_alloc(kAlignment, size) : map_huge(mapped_size(size));
}

void free_block(void* block, size_t size) {
  if (size < kHugePage) {
    std::free(block);
  } else {
    munmap(block, mapped_size(size));
  }
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
    for (void* block : list) free_block(block, size);
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
    *out = new_block(size);
    if (*out == nullptr) {
      drop_cache();
      *out = new_block(size);
    }
  }
  if (*out != nullptr) return QF_OK;
  return fail(QF_OUT_OF_MEMORY, "cpu: cannot allocate %zu bytes, %lld bytes are free", bytes,
              static_cast<long long>(available_memory()));
}

void release(void* ptr, size_t bytes) {
  const size_t size = size_class(bytes);
  if (ptr != nullptr && !keep_cached(ptr, size)) free_block(ptr, size);
}

void trim_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
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
