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

std::atomic<int64_t> Graph::recordings_{0};

Graph* Graph::recording_here() { return current_recording; }

void Graph::begin() {
  if (current_recording != nullptr) fail(ErrorCode::kInvalidArgument, "record: a graph is being recorded already");
  current_recording = this;
  recordings_.fetch_add(1, std::memory_order_relaxed);
}

void Graph::end() {
  if (current_recording != this) return;
  current_recording = nullptr;
  recordings_.fetch_sub(1, std::memory_order_relaxed);
}

Graph::~Graph() {
  end();
  if (captured_ == nullptr) return;
  const Device& device = *ops_.front().device;
  device.backend->graph_free(device.index, captured_);
}

QfStatus Graph::run(const Op& op) const {
  return op.run(op.device->index, reinterpret_cast<const char*>(arguments_.data()) + op.offset);
}

void Graph::capture() {
  capture_tried_ = true;
  if (ops_.empty()) return;
  const Device& device = *ops_.front().device;
  const QfBackend& backend = *device.backend;
  if (backend.capture_begin == nullptr) return;
  for (const Op& op : ops_) {
    if (op.device != &device) return;
  }
  if (backend.capture_begin(device.index) != QF_OK) return;
  for (const Op& op : ops_) {
    if (run(op) != QF_OK) break;  // capture_end fails too
  }
  backend.capture_end(device.index, &captured_);
}

void Graph::replay() {
  if (current_recording != nullptr) fail(ErrorCode::kInvalidArgument, "replay: a graph is being recorded");
  if (!capture_tried_) capture();
  if (captured_ == nullptr) {
    for (const Op& op : ops_) check_status(*op.device, run(op), op.name);
    return;
  }
  const Device& device = *ops_.front().device;
  check_status(device, device.backend->graph_launch(device.index, captured_), "replay");
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
