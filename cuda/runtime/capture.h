// Captured graphs. While a capture is open on a thread's stream its ops become nodes of a CUDA graph; a launch of the
// graph then costs the host one call. Workspace that the ops ask for meanwhile belongs to the graph, because its nodes
// keep the addresses.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/error.h"

namespace qformer::cuda {

class DeviceContext;

// A capture in progress.
class Capture {
 public:
  explicit Capture(DeviceContext& context) : context_(context) {}
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // Workspace of the graph; a request that the last one does not hold gets a larger block and the old one stays.
  QfStatus scratch(size_t bytes, void** out);

  QfStatus failure = QF_OK;  // of the first op that failed
  std::vector<void*> blocks;

 private:
  DeviceContext& context_;
  size_t last_bytes_ = 0;
};

QfStatus capture_begin(DeviceContext& context);
// *graph is null unless QF_OK.
QfStatus capture_end(DeviceContext& context, void** graph);
// QF_INVALID_ARGUMENT on another thread's context than the one that captured it: counters and order belong to a stream.
QfStatus graph_launch(DeviceContext& context, void* graph);
void graph_free(void* graph);

}  // namespace qformer::cuda
