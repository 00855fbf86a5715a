#include "core/graph.h"

namespace qformer {
namespace {

thread_local Graph* current_recording = nullptr;

}  // namespace

GraphPool::~GraphPool() {
  for (const Block& block : blocks_) {
    block.device->backend->free(block.device->index, block.data, static_cast<size_t>(block.bytes));
  }
}

void* GraphPool::take(Device& device, int64_t bytes) {
  Block* best = nullptr;
  for (Block& block : blocks_) {
    const bool fits = block.free && block.device == &device && block.bytes >= bytes;
    if (fits && (best == nullptr || block.bytes < best->bytes)) best = &block;
  }
  if (best == nullptr) {
    void* data = nullptr;
    check_status(device, device.backend->alloc(device.index, static_cast<size_t>(bytes), &data), "alloc");
    best = &blocks_.emplace_back(Block{&device, data, bytes, true});
  }
  best->free = false;
  return best->data;
}

void GraphPool::give_back(void* data) {
  for (Block& block : blocks_) {
    if (block.data == data) block.free = true;
  }
}

Graph* Graph::recording() { return current_recording; }

void Graph::begin() {
  if (current_recording != nullptr) fail(ErrorCode::kInvalidArgument, "record: a graph is being recorded already");
  current_recording = this;
}

void Graph::end() {
  if (current_recording == this) current_recording = nullptr;
}

void Graph::replay() {
  if (current_recording != nullptr) fail(ErrorCode::kInvalidArgument, "replay: a graph is being recorded");
  const char* base = reinterpret_cast<const char*>(arguments_.data());
  for (const Op& op : ops_) check_status(*op.device, op.run(op.device->index, base + op.offset), op.name);
}

void Graph::append(Device& device, const char* name, AnyOp op, const void* args, size_t bytes) {
  const size_t units = (bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t);
  const size_t first = arguments_.size();
  arguments_.resize(first + units);
  std::memcpy(arguments_.data() + first, args, bytes);
  ops_.push_back(Op{&device, name, op, first * sizeof(std::max_align_t)});
}

void Graph::retain(const std::shared_ptr<Storage>& storage) {
  if (!storage->belongs_to(pool_.get())) retained_.insert(storage);
}

}  // namespace qformer
