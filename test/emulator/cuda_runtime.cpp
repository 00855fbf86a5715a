// The emulated CUDA runtime: devices, memory, streams, events, captured graphs, and launches.
//
// One mutex serialises everything, as one device's queue would; operations run on the calling thread.
// Long because: it is one small function for each function of the runtime API that it stands for.
#include "cuda_runtime_api.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "device_memory.h"
#include "emulator/launch.h"
#include "schedule.h"

namespace em = qformer::emulator;

using Operation = std::function<cudaError_t()>;

struct CUgraph_st {
  std::vector<Operation> nodes;
};
struct CUgraphExec_st {
  std::vector<Operation> nodes;
};
struct CUstream_st {
  std::unique_ptr<CUgraph_st> capture;
  bool invalidated = false;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

namespace {

std::recursive_mutex mutex;
cudaError_t sticky = cudaSuccess;
thread_local cudaError_t last = cudaSuccess;
thread_local std::string detail;  // of `last`
thread_local int current_device = 0;
std::string environment_problem;

using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t report(cudaError_t error, std::string text = "") {
  last = error;
  detail = std::move(text);
  return error;
}

int read_choice(const char* name, int fallback, std::initializer_list<int> choices) {
  const char* text = std::getenv(name);
  if (!text || !*text) return fallback;
  for (int choice : choices)
    if (std::to_string(choice) == text) return choice;
  environment_problem = std::string(name) + "=" + text + " is not an emulated architecture (75, 80, 86, 89, 90)";
  return fallback;
}

bool read_environment() {
  em::machine.arch = read_choice("QFORMER_EMULATED_ARCH", 80, {75, 80, 86, 89, 90});
  if (const char* seed = std::getenv("QFORMER_EMULATOR_SEED")) em::machine.seed = std::strtoull(seed, nullptr, 10);
  return true;
}

void start() {
  static const bool once = read_environment();
  (void)once;
  em::initialize_memory();
}

int shared_limit() {
  switch (em::machine.arch) {
    case 75:
      return 64 * 1024;
    case 80:
      return 163 * 1024;
    case 90:
      return 227 * 1024;
    default:
      return 99 * 1024;  // 86, 89
  }
}

bool is_managed(const void* p) { return reinterpret_cast<uintptr_t>(p) - em::memory.base < em::DeviceMemory::kBytes; }

// Runs the operation, or adds it to the graph the stream captures.
cudaError_t enqueue(cudaStream_t stream, Operation operation) {
  if (stream && stream->capture) {
    stream->capture->nodes.push_back(std::move(operation));
    return cudaSuccess;
  }
  if (sticky != cudaSuccess) return sticky;
  return operation();
}

cudaError_t invalidate(cudaStream_t stream, const char* what) {
  stream->invalidated = true;
  return report(cudaErrorStreamCaptureUnsupported, std::string(what) + " while the stream captures");
}

std::string bad_range(const char* what, const void* p, size_t bytes) {
  const std::string bad = em::describe_bad_range(p, bytes);
  return bad.empty() ? bad : std::string(what) + " of " + std::to_string(bytes) + " bytes " + bad;
}

cudaError_t copy_now(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (bytes == 0) return cudaSuccess;
  if (to_device || is_managed(to))
    if (std::string bad = bad_range("copy to device memory", to, bytes); !bad.empty())
      return report(cudaErrorInvalidValue, bad);
  if (from_device || is_managed(from))
    if (std::string bad = bad_range("copy from device memory", from, bytes); !bad.empty())
      return report(cudaErrorInvalidValue, bad);
  if (kind == cudaMemcpyDeviceToHost) {
    const int64_t byte = em::first_uninitialized(from, bytes);
    if (byte >= 0)
      return report(cudaErrorInvalidValue, "download of " + std::to_string(bytes) + " bytes: byte " +
                                               std::to_string(byte) + " was never written");
  }
  memmove(to, from, bytes);
  if (is_managed(to)) {
    if (kind == cudaMemcpyDeviceToDevice)
      em::copy_initialization(to, from, bytes);
    else
      em::mark_written_by_host(to, bytes);
  }
  return cudaSuccess;
}

cudaError_t set_now(void* pointer, int value, size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  if (std::string bad = bad_range("memset", pointer, bytes); !bad.empty()) return report(cudaErrorInvalidValue, bad);
  memset(pointer, value, bytes);
  em::mark_written_by_host(pointer, bytes);
  return cudaSuccess;
}

std::string bad_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024) return "a block of " + std::to_string(threads) + " threads";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "a grid too large";
  if (uint64_t{grid.x} * grid.y * grid.z * ((threads + 31) / 32 * 32) >= em::kMaxThreads)
    return "more threads than the emulator numbers (2^29)";
  if (shared_bytes > static_cast<size_t>(shared_limit()))
    return std::to_string(shared_bytes) + " bytes of shared memory, sm_" + std::to_string(em::machine.arch) + " has " +
           std::to_string(shared_limit());
  return "";
}

}  // namespace

namespace qformer::emulator {

cudaError_t launch(const char* name, cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes,
                   std::function<void()> body) {
  const Lock lock(mutex);
  start();
  if (std::string bad = bad_launch(grid, block, shared_bytes); !bad.empty())
    return report(cudaErrorInvalidConfiguration, std::string(name) + ": " + bad);
  return enqueue(stream, [=, body = std::move(body)] {
    if (run_grid(name, grid, block, shared_bytes, body)) return cudaSuccess;
    sticky = cudaErrorLaunchFailure;
    return report(sticky);
  });
}

std::string take_fault(FaultKind* kind) {
  const Lock lock(mutex);
  sticky = last = cudaSuccess;
  if (kind) *kind = machine.fault_kind;
  machine.fault_kind = FaultKind::kNone;
  std::string fault;
  fault.swap(machine.fault);
  return fault;
}

void set_arch(int arch) {
  start();
  machine.arch = arch;
}
void set_seed(uint64_t seed) {
  start();
  machine.seed = seed;
}
void count_bank_conflicts(bool on) { machine.count_banks = on; }
Counters& counters() { return machine.counters; }

void lease(void* begin, size_t bytes) {
  const Lock lock(mutex);
  lease_allocation(begin, bytes);
}

}  // namespace qformer::emulator

cudaError_t cudaGetDeviceCount(int* count) {
  const Lock lock(mutex);
  start();
  *count = 0;
  if (!environment_problem.empty()) return report(cudaErrorInitializationError, environment_problem);
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device != 0) return report(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return report(cudaErrorInvalidDevice);
  start();
  *properties = {};
  std::snprintf(properties->name, sizeof(properties->name), "Emulated GPU (sm_%d%s)", em::machine.arch,
                em::kChecked ? "" : ", unchecked");
  properties->totalGlobalMem = em::DeviceMemory::kBytes;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = static_cast<size_t>(shared_limit());
  properties->sharedMemPerMultiprocessor = static_cast<size_t>(shared_limit()) + 1024;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->multiProcessorCount = em::machine.multiprocessors;
  properties->major = em::machine.arch / 10;
  properties->minor = em::machine.arch % 10;
  properties->l2CacheSize = 4 << 20;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  if (const cudaError_t error = cudaGetDeviceProperties(&p, device); error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
    default:
      return report(cudaErrorInvalidValue, "an attribute the emulator does not know");
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  const Lock lock(mutex);
  return sticky;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() {
  const Lock lock(mutex);
  return sticky != cudaSuccess ? sticky : last;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  last = cudaSuccess;  // the detail stays, for cudaGetErrorString of the code just returned
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError:
      return "cudaErrorInitializationError";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    default:
      return "a CUDA error";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  thread_local std::string text;
  const Lock lock(mutex);
  if (error == cudaErrorLaunchFailure && !em::machine.fault.empty())
    text = em::machine.fault;
  else if (error != cudaSuccess && !detail.empty())
    text = detail;
  else
    text = cudaGetErrorName(error);
  return text.c_str();
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const Lock lock(mutex);
  start();
  if (sticky != cudaSuccess) return sticky;
  *pointer = bytes == 0 ? nullptr : em::device_allocate(bytes);
  return bytes == 0 || *pointer ? cudaSuccess : report(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* pointer) {
  const Lock lock(mutex);
  if (pointer && !em::device_free(pointer))
    return report(cudaErrorInvalidValue, "cudaFree of a pointer that is no live allocation");
  return sticky;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const Lock lock(mutex);
  *total = em::DeviceMemory::kBytes;
  *free = em::DeviceMemory::kBytes - em::device_bytes_in_use();
  return cudaSuccess;
}

// Pinned memory lies in the device's range, so kernels may access it when it is mapped. The host writes it without
// telling: all of it counts as initialised.
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  const Lock lock(mutex);
  const cudaError_t error = cudaMalloc(pointer, bytes);
  if (error == cudaSuccess && *pointer) em::mark_written_by_host(*pointer, bytes);
  return error;
}
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault); }
cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const Lock lock(mutex);
  return enqueue(nullptr, [=] { return copy_now(to, from, bytes, kind); });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  const Lock lock(mutex);
  const void* host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : nullptr;
  if (stream && stream->capture && host && !is_managed(host))
    return invalidate(stream, "a copy of pageable host memory");
  return enqueue(stream, [=] { return copy_now(to, from, bytes, kind); });
}

cudaError_t cudaMemset(void* pointer, int value, size_t bytes) { return cudaMemsetAsync(pointer, value, bytes); }

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  const Lock lock(mutex);
  return enqueue(stream, [=] { return set_now(pointer, value, bytes); });
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, 0); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(mutex);
  start();
  *stream = new CUstream_st;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(mutex);
  delete stream;
  return sticky;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(mutex);
  if (stream && stream->capture) return invalidate(stream, "cudaStreamSynchronize");
  return sticky;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaStreamSynchronize(nullptr); }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaStreamSynchronize(nullptr); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const Lock lock(mutex);
  if (!stream || stream->capture) return report(cudaErrorStreamCaptureUnsupported);
  stream->capture = std::make_unique<CUgraph_st>();
  stream->invalidated = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(mutex);
  *graph = nullptr;
  if (!stream || !stream->capture) return report(cudaErrorInvalidValue, "no capture to end");
  std::unique_ptr<CUgraph_st> captured = std::move(stream->capture);
  if (stream->invalidated) return report(cudaErrorStreamCaptureInvalidated);
  *graph = captured.release();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool active = stream && stream->capture;
  *status = !active               ? cudaStreamCaptureStatusNone
            : stream->invalidated ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(exec, graph, flags);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const Lock lock(mutex);
  for (const Operation& node : exec->nodes)
    if (const cudaError_t error = enqueue(stream, node); error != cudaSuccess) return error;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  start();
  if (value > shared_limit())
    return report(cudaErrorInvalidValue,
                  std::to_string(value) + " bytes of shared memory, this device has " + std::to_string(shared_limit()));
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {0, 1024, 32, shared_limit()};
  return cudaSuccess;
}
