#include "core/graph.h"
#include "core/node_list.h"
#include "core/tensor.h"

namespace qformer {
namespace {

// Beyond this no machine can hold a tensor; refusing early keeps size arithmetic far from overflow.
constexpr int64_t kMaxBytes = int64_t{1} << 46;

void check_size(int64_t bytes) {
  if (bytes <= kMaxBytes) return;
  fail(ErrorCode::kOutOfMemory, "a tensor of %lld bytes is too large", static_cast<long long>(bytes));
}

void* allocate_bytes(Device& device, int64_t bytes) {
  void* data = nullptr;
  const QfStatus status = device.backend->alloc(device.index, static_cast<size_t>(bytes), &data);
  if (status == QF_OK) return data;
  QfDeviceInfo info{};
  device.backend->device_info(device.index, &info);
  Error error(ErrorCode::kOutOfMemory, "allocating " + std::to_string(bytes) + " bytes on " + device.name +
                                           " failed (" + std::to_string(info.free_memory) + " free)");
  error.requested_bytes = bytes;
  error.free_bytes = info.free_memory;
  throw error;
}

// Larger than most vectors of a decode step (ids, positions, lengths of a batch).
constexpr int64_t kSmallBytes = 128;

}  // namespace

// A small block of a device that works in host memory, together with its bookkeeping.
class SmallStorage : public Storage {
 public:
  SmallStorage(Device& device, int64_t bytes) : Storage(Key{}, device, block_, bytes, Memory::kInside) {}

 private:
  alignas(64) std::byte block_[kSmallBytes];
};

std::shared_ptr<Storage> Storage::allocate(Device& device, int64_t bytes) {
  if (Graph* graph = Graph::recording()) {
    check_size(bytes);
    void* data = graph->pool()->take(device, bytes);
    auto storage = std::make_shared<Storage>(Key{}, device, data, bytes, Memory::kPool);
    storage->owner_ = graph->pool();
    return storage;
  }
  if (bytes <= kSmallBytes && device.backend->host_memory != 0) {
    return std::allocate_shared<SmallStorage>(NodeAllocator<SmallStorage>(), device, bytes);
  }
  check_size(bytes);
  return std::make_shared<Storage>(Key{}, device, allocate_bytes(device, bytes), bytes, Memory::kDevice);
}

std::shared_ptr<Storage> Storage::borrow(Device& device, const void* data, int64_t bytes, std::shared_ptr<void> owner) {
  auto storage = std::make_shared<Storage>(Key{}, device, const_cast<void*>(data), bytes, Memory::kBorrowed);
  storage->owner_ = std::move(owner);
  return storage;
}

bool Storage::belongs_to(const GraphPool* pool) const { return memory_ == Memory::kPool && owner_.get() == pool; }

Storage::~Storage() {
  if (memory_ == Memory::kPool) static_cast<GraphPool*>(owner_.get())->give_back(data);
  if (memory_ == Memory::kDevice) device.backend->free(device.index, data, static_cast<size_t>(bytes));
}

}  // namespace qformer
