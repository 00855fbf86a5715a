// The backend's table and the one symbol of this library. Every entry is wrapped: the device is checked and made
// current, no exception crosses the C interface, a failure inside a capture is remembered by it, and in debug mode each
// op is waited for, so that what fails on the device is reported with the op's name.
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "entry.h"
#include "runtime/capture.h"
#include "runtime/device.h"
#include "runtime/staging.h"

#if defined(QF_EMULATOR_UNCHECKED)
#define QF_BACKEND_NAME "emulated-unchecked"
#elif defined(QF_EMULATED)
#define QF_BACKEND_NAME "emulated"
#else
#define QF_BACKEND_NAME "cuda"
#endif

namespace qformer::cuda {
namespace {

template <class Body>
QfStatus guarded(int32_t device, Body body) noexcept {
  try {
    DeviceContext* context = nullptr;
    if (const QfStatus status = enter(device, &context); status != QF_OK) return status;
    return body(*context);
  } catch (const std::bad_alloc&) {
    return fail(QF_OUT_OF_MEMORY, QF_BACKEND_NAME ": the host is out of memory");
  } catch (const std::exception& error) {
    return fail(QF_INTERNAL, QF_BACKEND_NAME ": %s", error.what());
  } catch (...) {
    return fail(QF_INTERNAL, QF_BACKEND_NAME ": an unknown exception");
  }
}

template <OpId kOp, auto Entry, class Args>
QfStatus op_entry(int32_t device, const Args* args) {
  return guarded(device, [&](DeviceContext& context) {
    context.op = kOp;
    QfStatus status = Entry(device, args);
    if (context.capture != nullptr) {
      if (context.capture->failure == QF_OK) context.capture->failure = status;
    } else if (status == QF_OK && debug_mode()) {
      status = context.synchronize(op_name(kOp));
    }
    return status;
  });
}

QfStatus device_info(int32_t index, QfDeviceInfo* info) {
  return guarded(index, [&](DeviceContext& context) {
    const Device& device = context.device;
    *info = {};
    std::snprintf(info->name, sizeof(info->name), "%s", device.name);
    std::snprintf(info->level, sizeof(info->level), "sm_%d", device.compute_capability);
    info->memory = static_cast<int64_t>(device.total_memory);
    info->free_memory = static_cast<int64_t>(device.memory.available());
    return QF_OK;
  });
}

QfStatus backend_alloc(int32_t device, size_t bytes, void** out) {
  *out = nullptr;
  return guarded(device, [&](DeviceContext& context) { return context.device.memory.allocate(context, bytes, out); });
}

void backend_free(int32_t device, void* ptr, size_t) {
  if (ptr == nullptr || device < 0 || device >= device_count()) return;
  device_at(device).memory.release(ptr);
}

QfStatus refuse_in_capture(DeviceContext& context, const char* what) {
  if (context.capture == nullptr) return QF_OK;
  context.capture->failure = QF_INVALID_ARGUMENT;
  return fail(QF_INVALID_ARGUMENT, "%s: not while a graph is captured", what);
}

QfStatus upload(int32_t device, void* dst, const void* src, size_t bytes) {
  if (bytes == 0) return QF_OK;
  return guarded(device, [&](DeviceContext& context) {
    const QfStatus status = refuse_in_capture(context, "upload");
    return status == QF_OK ? context.staging->upload(dst, src, bytes) : status;
  });
}

QfStatus download(int32_t device, void* dst, const void* src, size_t bytes) {
  return guarded(device, [&](DeviceContext& context) {
    QfStatus status = refuse_in_capture(context, "download");
    if (status == QF_OK && bytes > 0) status = context.staging->download(dst, src, bytes);
    return status == QF_OK ? context.take_fault() : status;
  });
}

QfStatus fill_zero(int32_t device, void* dst, size_t bytes) {
  if (bytes == 0) return QF_OK;
  return guarded(device, [&](DeviceContext& context) {
    return check(cudaMemsetAsync(dst, 0, bytes, context.stream), "fill_zero");
  });
}

QfStatus synchronize(int32_t device) {
  return guarded(device, [&](DeviceContext& context) { return context.synchronize("synchronize"); });
}

QfStatus table_capture_begin(int32_t device) {
  return guarded(device, [&](DeviceContext& context) { return capture_begin(context); });
}

QfStatus table_capture_end(int32_t device, void** graph) {
  *graph = nullptr;
  return guarded(device, [&](DeviceContext& context) { return capture_end(context, graph); });
}

QfStatus table_graph_launch(int32_t device, void* graph) {
  return guarded(device, [&](DeviceContext& context) {
    const QfStatus status = graph_launch(context, graph);
    return status == QF_OK && debug_mode() ? context.synchronize("graph") : status;
  });
}

void table_graph_free(int32_t, void* graph) { graph_free(graph); }

QfBackend make_table() {
  QfBackend table = {};
  table.abi = QF_BACKEND_ABI;
  table.size = sizeof(QfBackend);
  table.name = QF_BACKEND_NAME;
  table.device_count = device_count;
  table.device_info = device_info;
  table.last_error = last_error;
  table.alloc = backend_alloc;
  table.free = backend_free;
  table.upload = upload;
  table.download = download;
  table.fill_zero = fill_zero;
  table.synchronize = synchronize;
  table.host_memory = 0;
  table.activation_dtypes = 1 << QF_F32 | 1 << QF_F16 | 1 << QF_BF16;
  table.capture_begin = table_capture_begin;
  table.capture_end = table_capture_end;
  table.graph_launch = table_graph_launch;
  table.graph_free = table_graph_free;
#define QF_TABLE_ENTRY(name, Args) table.name = op_entry<OpId::name, &cuda::name, Args>;
  QF_OPS(QF_TABLE_ENTRY)
#undef QF_TABLE_ENTRY
  return table;
}

}  // namespace
}  // namespace qformer::cuda

// Null where `abi` is not the one this library was built for.
extern "C" __attribute__((visibility("default"))) const QfBackend* qformer_backend(uint32_t abi) {
  static const QfBackend table = qformer::cuda::make_table();
  return abi == QF_BACKEND_ABI ? &table : nullptr;
}
