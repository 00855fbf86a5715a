// Devices and the state that one thread has on one of them.
//
// A DeviceContext is a stream with everything ordered on it: workspace, counters, pinned staging, fault words, the
// capture in progress. Each thread that uses a device has its own, so several engines share a GPU without locks,
// without waiting for each other and without seeing each other's faults. A thread that ends leaves its context to the
// next new one. What all threads share is the memory pool of the device and its poison.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "runtime/error.h"
#include "runtime/memory.h"

namespace qformer::cuda {

class StagingRing;
class Capture;

// The ops of the table by number, to attribute what a kernel finds on the device.
enum class OpId : int32_t {
#define QF_OP_ID(name, Args) name,
  QF_OPS(QF_OP_ID)
#undef QF_OP_ID
      kCount
};
const char* op_name(OpId op);

// What all threads share of one GPU. Made on first use and never destroyed: memory may be freed while the process
// exits.
struct Device {
  int ordinal = 0;  // CUDA's number
  char name[128] = "";
  int compute_capability = 0;  // 80 = sm_80
  int multiprocessors = 0;
  size_t shared_memory_per_block_optin = 0;  // bytes
  size_t total_memory = 0;                   // bytes
  DeviceMemory memory;
  std::atomic<bool> poisoned{false};
  char poison[256] = "";  // why; written once, before `poisoned` is set
};

// GPUs with compute capability 7.5 and later, in CUDA's order. When 0, last_error says why.
int32_t device_count();
Device& device_at(int32_t device);

class DeviceContext {
 public:
  DeviceContext(int32_t index, Device& device);
  ~DeviceContext();
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  // Creates stream and fault words; called once by the owner thread.
  QfStatus open();

  const int32_t index;  // of the device in the backend's table
  Device& device;
  cudaStream_t stream = nullptr;
  const int compute_capability;
  const int multiprocessors;
  const size_t shared_memory_per_block_optin;  // bytes

  // Workspace of at least `bytes` for one op, 256-byte aligned, undefined content. One call per op: the next op on this
  // stream gets the same memory. In a capture it belongs to the captured graph.
  QfStatus scratch(size_t bytes, void** out);
  // `count` int32 that are zero; the op's last kernel must leave them zero again (arrival counters of split
  // reductions).
  QfStatus counters(size_t count, int32_t** out);
  // Where a kernel of the running op reports a code of prims/fault.h; read by take_fault.
  int32_t* fault();

  // After a synchronization: QF_INVALID_ARGUMENT naming the first op that reported a fault, which is then forgotten.
  QfStatus take_fault();
  // Waits for this stream; CUDA's errors of earlier launches surface here, and faults.
  QfStatus synchronize(const char* what);

  OpId op = OpId::kCount;  // the op that runs on this thread
  std::unique_ptr<StagingRing> staging;
  std::unique_ptr<Capture> capture;    // set between capture_begin and capture_end
  std::atomic<bool> capturing{false};  // the same, for other threads

 private:
  int32_t* host_faults_ = nullptr;  // mapped pinned, one word per op
  int32_t* device_faults_ = nullptr;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
  int32_t* counters_ = nullptr;
  size_t counters_count_ = 0;
};

// The calling thread's context of a device whose table entry is running.
DeviceContext& context_of(int32_t device);

// Makes `device` current on this thread and finds or opens its context. QF_INVALID_ARGUMENT for a bad index,
// QF_DEVICE_FAULT for a poisoned device.
QfStatus enter(int32_t device, DeviceContext** out);

// What a code that a kernel reported means.
const char* fault_text(int32_t code);

// Of the calling thread's current device; 0 before the first enter.
int current_compute_capability();

// Marks the calling thread's current device as unusable and remembers the first reason.
void poison_current_device(const char* reason);

// QFORMER_CUDA_DEBUG=1: every op is followed by a synchronization, so that a device fault names its op.
bool debug_mode();
void set_debug_mode(bool on);

}  // namespace qformer::cuda
