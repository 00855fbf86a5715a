// Record and replay. While a Graph is being recorded on a thread, ops are appended to it instead of run: a function
// pointer and the bytes of its argument struct. Where the backend can capture, the first replay turns the list into a
// graph of the device, which later ones launch with one call; where it cannot, the list is run op by op. Memory made
// during the recording comes from a pool that the graph owns, and is reused inside the recording only, so that a replay
// overwrites nobody else's data. Tensors from outside are kept alive by the graph.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <type_traits>
#include <unordered_set>
#include <vector>

#include "core/tensor.h"

namespace qformer {

// The private memory of one graph: blocks freed during the recording serve later allocations of it.
class GraphPool {
 public:
  ~GraphPool();
  void* take(Device& device, int64_t bytes);
  void give_back(void* data);

 private:
  struct Block {
    Device* device;
    void* data;
    int64_t bytes;
    bool free;
  };
  std::vector<Block> blocks_;
};

class Graph {
 public:
  using AnyOp = QfStatus (*)(int32_t, const void*);

  ~Graph();
  // Starts recording on this thread. INVALID_ARGUMENT if one is being recorded already.
  void begin();
  // Ends recording on this thread; safe to call when it never began.
  void end();
  // Runs every recorded op in order.
  void replay();
  // True when replays are launches of one captured graph.
  bool is_captured() const { return captured_ != nullptr; }

  void append(Device& device, const char* name, AnyOp op, const void* args, size_t bytes);
  void retain(const std::shared_ptr<Storage>& storage);
  const std::shared_ptr<GraphPool>& pool() const { return pool_; }
  size_t op_count() const { return ops_.size(); }

  // The one being recorded on this thread, or null.
  static Graph* recording() { return recordings_.load(std::memory_order_relaxed) == 0 ? nullptr : recording_here(); }

 private:
  struct Op {
    Device* device;
    const char* name;
    AnyOp run;
    size_t offset;  // of its arguments in arguments_
  };

  static Graph* recording_here();
  QfStatus run(const Op& op) const;
  // Leaves captured_ null where the device cannot capture these ops.
  void capture();

  // Of all threads: while there is none, as at most times, no thread looks for its own.
  static std::atomic<int64_t> recordings_;

  std::vector<Op> ops_;
  std::vector<std::max_align_t> arguments_;
  std::unordered_set<std::shared_ptr<Storage>> retained_;
  std::shared_ptr<GraphPool> pool_ = std::make_shared<GraphPool>();
  bool capture_tried_ = false;
  void* captured_ = nullptr;  // the backend's graph of all ops
};

// Runs an op on the device of its tensors, or records it. `work` is the tensor whose elements are the op's work, mostly
// the result: where it is empty nothing runs, so that kernels never loop over the other extents of an empty tensor. All
// tensors are kept alive by a recording.
template <class Args, class... Tensors>
void launch(Device& device, const char* name, QfStatus (*op)(int32_t, const Args*), const Args& args,
            const Tensor& work, const Tensors&... tensors) {
  static_assert(std::is_trivially_copyable_v<Args>);
  if (op == nullptr) fail(ErrorCode::kUnsupported, "%s is not implemented on %s", name, device.name.c_str());
  if (work.count() == 0) return;
  Graph* graph = Graph::recording();
  if (graph == nullptr) {
    check_status(device, op(device.index, &args), name);
    return;
  }
  graph->retain(work.storage);
  (graph->retain(tensors.storage), ...);
  graph->append(device, name, reinterpret_cast<Graph::AnyOp>(op), &args, sizeof args);
}

}  // namespace qformer
