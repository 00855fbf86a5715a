#include "runtime/capture.h"

#include <memory>

#include "runtime/device.h"

namespace qformer::cuda {
namespace {

struct CapturedGraph {
  DeviceContext* context;
  cudaGraphExec_t exec;
  std::vector<void*> blocks;
};

}  // namespace

Capture::~Capture() {
  for (void* block : blocks) context_.device.memory.release(block);
}

QfStatus Capture::scratch(size_t bytes, void** out) {
  if (blocks.empty() || bytes > last_bytes_) {
    void* block = nullptr;
    if (const QfStatus status = context_.device.memory.allocate(context_, bytes, &block); status != QF_OK)
      return status;
    blocks.push_back(block);
    last_bytes_ = bytes;
  }
  *out = blocks.back();
  return QF_OK;
}

QfStatus capture_begin(DeviceContext& context) {
  if (context.capture != nullptr) return fail(QF_INVALID_ARGUMENT, "a graph is being captured already");
  // Relaxed: an op may allocate workspace meanwhile, here and in other threads.
  const cudaError_t error = cudaStreamBeginCapture(context.stream, cudaStreamCaptureModeRelaxed);
  if (const QfStatus status = check(error, "capture"); status != QF_OK) return status;
  context.capture = std::make_unique<Capture>(context);
  context.capturing = true;
  return QF_OK;
}

QfStatus capture_end(DeviceContext& context, void** out) {
  *out = nullptr;
  if (context.capture == nullptr) return fail(QF_INVALID_ARGUMENT, "no graph is being captured");
  const std::unique_ptr<Capture> capture = std::move(context.capture);
  context.capturing = false;
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(context.stream, &graph);
  if (capture->failure != QF_OK) {  // its message is this thread's last error
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    return capture->failure;
  }
  if (const QfStatus status = check(ended, "capture"); status != QF_OK) return status;
  cudaGraphExec_t exec = nullptr;
  const cudaError_t instantiated = cudaGraphInstantiateWithFlags(&exec, graph, 0);
  cudaGraphDestroy(graph);
  if (const QfStatus status = check(instantiated, "graph"); status != QF_OK) return status;
  *out = new CapturedGraph{&context, exec, std::move(capture->blocks)};
  return QF_OK;
}

QfStatus graph_launch(DeviceContext& context, void* graph) {
  const auto* captured = static_cast<const CapturedGraph*>(graph);
  if (captured->context != &context) {
    return fail(QF_INVALID_ARGUMENT, "a captured graph runs on the thread that captured it");
  }
  return check(cudaGraphLaunch(captured->exec, context.stream), "graph");
}

void graph_free(void* graph) {
  const std::unique_ptr<CapturedGraph> captured(static_cast<CapturedGraph*>(graph));
  if (captured == nullptr) return;
  // A launch may still be running: the stream keeps the executable alive until it is done, and released blocks are
  // used again by later work of the same stream only.
  cudaGraphExecDestroy(captured->exec);
  for (void* block : captured->blocks) captured->context->device.memory.release(block);
}

}  // namespace qformer::cuda
