#include "core/graph.h"
#include "core/tensor.h"

namespace qformer {
namespace {

// Beyond this no machine can hold a tensor; refusing early keeps size arithmetic far from overflow.
constexpr int64_t kMaxBytes = int64_t{1} << 46;

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

}  // namespace

std::shared_ptr<Storage> Storage::allocate(Device& device, int64_t bytes) {
  if (bytes > kMaxBytes)
    fail(ErrorCode::kOutOfMemory, "a tensor of %lld bytes is too large", static_cast<long long>(bytes));
  Graph* graph = Graph::recording();
  void* data = graph != nullptr ? graph->pool()->take(device, bytes) : allocate_bytes(device, bytes);
  auto storage = std::make_shared<Storage>(Key{}, device, data, bytes, false);
  if (graph != nullptr) storage->pool_ = graph->pool();
  return storage;
}

std::shared_ptr<Storage> Storage::borrow(Device& device, const void* data, int64_t bytes, std::shared_ptr<void> owner) {
  auto storage = std::make_shared<Storage>(Key{}, device, const_cast<void*>(data), bytes, true);
  storage->owner_ = std::move(owner);
  return storage;
}

Storage::~Storage() {
  if (owner_ != nullptr) return;
  if (pool_ != nullptr) {
    pool_->give_back(data);
  } else {
    device.backend->free(device.index, data, static_cast<size_t>(bytes));
  }
}

}  // namespace qformer
