#include "runtime/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "runtime/capture.h"
#include "runtime/staging.h"

#ifdef QF_EMULATED
#include "emulator/launch.h"
#endif

namespace qformer::cuda {
namespace {

constexpr int kMinComputeCapability = 75;
constexpr size_t kCounters = 4096;

struct Registry {
  std::vector<std::unique_ptr<Device>> devices;
  char problem[256] = "";  // why there is no device
  std::mutex mutex;
  std::vector<DeviceContext*> idle;  // left by threads that ended
};

QfStatus read_attributes(Device& device) {
  int major = 0, minor = 0, shared = 0;
  cudaDeviceProp properties;
  QfStatus status = check(cudaGetDeviceProperties(&properties, device.ordinal), "device");
  const auto read = [&](int* value, cudaDeviceAttr attribute) {
    if (status == QF_OK) status = check(cudaDeviceGetAttribute(value, attribute, device.ordinal), "device");
  };
  read(&major, cudaDevAttrComputeCapabilityMajor);
  read(&minor, cudaDevAttrComputeCapabilityMinor);
  read(&device.multiprocessors, cudaDevAttrMultiProcessorCount);
  read(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (status != QF_OK) return status;
  std::snprintf(device.name, sizeof(device.name), "%.*s", static_cast<int>(sizeof(device.name)) - 1, properties.name);
  device.compute_capability = major * 10 + minor;
  device.shared_memory_per_block_optin = static_cast<size_t>(shared);
  device.total_memory = properties.totalGlobalMem;
  return QF_OK;
}

Registry* find_devices() {
  auto* all = new Registry;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    cudaGetLastError();
    std::snprintf(all->problem, sizeof(all->problem), "no GPU: %s",
                  error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
    return all;
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    auto device = std::make_unique<Device>();
    device->ordinal = ordinal;
    if (read_attributes(*device) != QF_OK) {
      std::snprintf(all->problem, sizeof(all->problem), "%s", last_error());
      continue;
    }
    if (device->compute_capability >= kMinComputeCapability) {
      all->devices.push_back(std::move(device));
      continue;
    }
    std::snprintf(all->problem, sizeof(all->problem), "%.100s has compute capability %d.%d, needed 7.5 or newer",
                  device->name, device->compute_capability / 10, device->compute_capability % 10);
  }
  return all;
}

// Never destroyed: memory may be freed while the process exits.
Registry& registry() {
  static Registry* const instance = find_devices();
  return *instance;
}

// The contexts of one thread. Its end leaves them, without a call into CUDA, to whoever comes next.
struct ThreadContexts {
  std::vector<DeviceContext*> by_device;
  int current = -1;  // index of the device that is current in CUDA

  ~ThreadContexts() {
    Registry& all = registry();
    std::lock_guard<std::mutex> lock(all.mutex);
    for (DeviceContext* context : by_device) {
      if (context != nullptr) all.idle.push_back(context);
    }
  }
};
thread_local ThreadContexts thread_contexts;

DeviceContext* adopt_idle(int32_t index) {
  Registry& all = registry();
  std::lock_guard<std::mutex> lock(all.mutex);
  for (size_t i = 0; i < all.idle.size(); ++i) {
    DeviceContext* context = all.idle[i];
    if (context->index != index) continue;
    all.idle.erase(all.idle.begin() + static_cast<std::ptrdiff_t>(i));
    return context;
  }
  return nullptr;
}

// A thread may have ended in the middle of a capture, or with faults that nobody read.
void clean(DeviceContext& context) {
  void* graph = nullptr;
  if (context.capture != nullptr && capture_end(context, &graph) == QF_OK) graph_free(graph);
  context.synchronize("device");
}

QfStatus new_context(int32_t index, DeviceContext** out) {
  if (DeviceContext* idle = adopt_idle(index); idle != nullptr) {
    clean(*idle);
    *out = idle;
    return QF_OK;
  }
  auto context = std::make_unique<DeviceContext>(index, device_at(index));
  if (const QfStatus status = context->open(); status != QF_OK) return status;
  *out = context.release();
  return QF_OK;
}

QfStatus poisoned(const Device& device) {
  return fail(QF_DEVICE_FAULT, "%s failed earlier and cannot be used until the process is restarted: %s", device.name,
              device.poison);
}

}  // namespace

const char* op_name(OpId op) {
  static const char* const names[] = {
#define QF_OP_NAME(name, Args) #name,
      QF_OPS(QF_OP_NAME)
#undef QF_OP_NAME
  };
  return op == OpId::kCount ? "device" : names[static_cast<int>(op)];
}

int32_t device_count() {
  const Registry& all = registry();
  if (all.devices.empty()) fail(QF_UNSUPPORTED, "%s", all.problem);
  return static_cast<int32_t>(all.devices.size());
}

Device& device_at(int32_t device) { return *registry().devices[static_cast<size_t>(device)]; }

DeviceContext::DeviceContext(int32_t index, Device& device)
    : index(index),
      device(device),
      compute_capability(device.compute_capability),
      multiprocessors(device.multiprocessors),
      shared_memory_per_block_optin(device.shared_memory_per_block_optin) {}

DeviceContext::~DeviceContext() {
  staging.reset();
  if (host_faults_ != nullptr) cudaFreeHost(host_faults_);
  if (stream != nullptr) cudaStreamDestroy(stream);
}

QfStatus DeviceContext::open() {
  QfStatus status = check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  if (status != QF_OK) return status;
  constexpr size_t kBytes = static_cast<size_t>(OpId::kCount) * sizeof(int32_t);
  void* host = nullptr;
  status = check(cudaHostAlloc(&host, kBytes, cudaHostAllocMapped), "fault words");
  if (status != QF_OK) return status;
  host_faults_ = static_cast<int32_t*>(host);
  std::memset(host_faults_, 0, kBytes);
  void* mapped = nullptr;
  status = check(cudaHostGetDevicePointer(&mapped, host, 0), "fault words");
  device_faults_ = static_cast<int32_t*>(mapped);
  staging = std::make_unique<StagingRing>(stream);
  return status;
}

QfStatus DeviceContext::scratch(size_t bytes, void** out) {
  if (capture != nullptr) return capture->scratch(bytes, out);
  if (bytes > workspace_bytes_) {
    device.memory.release(workspace_);
    workspace_ = nullptr;
    workspace_bytes_ = 0;
    const size_t grown = block_size_for(bytes);
    if (const QfStatus status = device.memory.allocate(*this, grown, &workspace_); status != QF_OK) return status;
    workspace_bytes_ = grown;
  }
#ifdef QF_EMULATED
  if (workspace_ != nullptr) emulator::lease(workspace_, bytes);  // exact bounds, and nothing left of the op before
#endif
  *out = workspace_;
  return QF_OK;
}

QfStatus DeviceContext::counters(size_t count, int32_t** out) {
  if (count > kCounters) {
    return fail(QF_INTERNAL, "%s: %zu counters asked for, there are %zu", op_name(op), count, kCounters);
  }
  if (counters_ == nullptr) {
    void* memory = nullptr;
    QfStatus status = device.memory.allocate(*this, kCounters * sizeof(int32_t), &memory);
    if (status != QF_OK) return status;
    // Not on the stream: it may be in a capture, and the zeros must be there now.
    status = check(cudaMemset(memory, 0, kCounters * sizeof(int32_t)), "counters");
    if (status != QF_OK) return status;
    counters_ = static_cast<int32_t*>(memory);
  }
  *out = counters_;
  return QF_OK;
}

int32_t* DeviceContext::fault() { return device_faults_ + static_cast<int>(op); }

QfStatus DeviceContext::take_fault() {
  QfStatus status = QF_OK;
  for (int i = 0; i < static_cast<int>(OpId::kCount); ++i) {
    volatile int32_t& word = host_faults_[i];
    if (word == 0) continue;
    if (status == QF_OK) status = fail(QF_INVALID_ARGUMENT, "%s: %s", op_name(static_cast<OpId>(i)), fault_text(word));
    word = 0;
  }
  return status;
}

QfStatus DeviceContext::synchronize(const char* what) {
  if (capture != nullptr) return fail(QF_INVALID_ARGUMENT, "%s: not while a graph is captured", what);
  if (const QfStatus status = check(cudaStreamSynchronize(stream), what); status != QF_OK) return status;
  return take_fault();
}

DeviceContext& context_of(int32_t device) { return *thread_contexts.by_device[static_cast<size_t>(device)]; }

QfStatus enter(int32_t index, DeviceContext** out) {
  const Registry& all = registry();
  if (index < 0 || static_cast<size_t>(index) >= all.devices.size()) {
    return fail(QF_INVALID_ARGUMENT, "there is no device %d", index);
  }
  const Device& device = device_at(index);
  if (device.poisoned.load(std::memory_order_acquire)) return poisoned(device);
  ThreadContexts& mine = thread_contexts;
  if (mine.current != index) {
    if (const QfStatus status = check(cudaSetDevice(device.ordinal), "device"); status != QF_OK) return status;
    mine.current = index;
  }
  if (mine.by_device.size() < all.devices.size()) mine.by_device.resize(all.devices.size(), nullptr);
  DeviceContext*& context = mine.by_device[static_cast<size_t>(index)];
  if (context == nullptr) {
    if (const QfStatus status = new_context(index, &context); status != QF_OK) return status;
  }
  *out = context;
  return QF_OK;
}

int current_compute_capability() {
  const int current = thread_contexts.current;
  return current < 0 ? 0 : device_at(current).compute_capability;
}

void poison_current_device(const char* reason) {
  const int current = thread_contexts.current;
  if (current < 0) return;
  Registry& all = registry();
  Device& device = device_at(current);
  std::lock_guard<std::mutex> lock(all.mutex);
  if (device.poisoned.load(std::memory_order_relaxed)) return;
  std::snprintf(device.poison, sizeof(device.poison), "%s", reason);
  device.poisoned.store(true, std::memory_order_release);
}

namespace {

std::atomic<bool>& debug_flag() {
  static std::atomic<bool> on{[] {
    const char* value = std::getenv("QFORMER_CUDA_DEBUG");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }()};
  return on;
}

}  // namespace

bool debug_mode() { return debug_flag().load(std::memory_order_relaxed); }
void set_debug_mode(bool on) { debug_flag().store(on, std::memory_order_relaxed); }

}  // namespace qformer::cuda
