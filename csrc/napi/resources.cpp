// Graphs, mapped files and devices as JavaScript sees them.
#include "core/backend_library.h"
#include "cpu/cpu_backend.h"
#include "napi/tensors.h"
#include "ops/check.h"

namespace qformer::napi {
namespace {

Graph& find_graph(Environment& environment, int64_t handle) {
  std::shared_ptr<Graph>* graph = environment.graphs.find(handle);
  if (graph == nullptr) fail(ErrorCode::kStaleTensor, "the graph was disposed");
  return **graph;
}

MappedFile& find_file(Environment& environment, int64_t handle) {
  std::shared_ptr<MappedFile>* file = environment.files.find(handle);
  if (file == nullptr) fail(ErrorCode::kStaleTensor, "the mapped file was closed");
  return **file;
}

}  // namespace

double graph_begin(Environment& environment, Napi::Env) {
  auto graph = std::make_shared<Graph>();
  graph->begin();
  return static_cast<double>(environment.graphs.add(std::move(graph)));
}

void graph_end(Environment& environment, Napi::Env, int64_t graph) { find_graph(environment, graph).end(); }
void graph_replay(Environment& environment, Napi::Env, int64_t graph) { find_graph(environment, graph).replay(); }
double graph_ops(Environment& environment, Napi::Env, int64_t graph) {
  return static_cast<double>(find_graph(environment, graph).op_count());
}
void graph_dispose(Environment& environment, Napi::Env, int64_t graph) { environment.graphs.remove(graph); }

double file_open(Environment& environment, Napi::Env, const std::string& path) {
  return static_cast<double>(environment.files.add(MappedFile::open(path)));
}

double file_size(Environment& environment, Napi::Env, int64_t file) {
  return static_cast<double>(find_file(environment, file).size());
}

napi_value file_bytes(Environment& environment, Napi::Env env, int64_t file, int64_t offset, int64_t length) {
  const uint8_t* bytes = find_file(environment, file).bytes(offset, length);
  return Napi::Buffer<uint8_t>::Copy(env, bytes, static_cast<size_t>(length));
}

Tensor file_tensor(Environment& environment, Napi::Env, int64_t file, int64_t offset, const Shape& shape, int64_t dtype,
                   const std::string& device) {
  ops::check_range("tensor", "dtype", dtype, 0, QF_DTYPE_COUNT - 1);
  return find_file(environment, file).tensor(find_device(device), offset, shape, static_cast<int32_t>(dtype));
}

void file_close(Environment& environment, Napi::Env, int64_t file) { environment.files.remove(file); }

napi_value list_devices(Environment&, Napi::Env env, bool all) {
  if (all) load_backend_libraries();
  Napi::Array list = Napi::Array::New(env);
  for (const Device* device : all_devices()) {
    QfDeviceInfo info{};
    if (device->backend->device_info(device->index, &info) != QF_OK) continue;
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", device->name);
    entry.Set("device", std::string(info.name));
    entry.Set("level", std::string(info.level));
    entry.Set("memory", static_cast<double>(info.memory));
    entry.Set("freeMemory", static_cast<double>(info.free_memory));
    entry.Set("threads", info.threads);
    Napi::Array dtypes = Napi::Array::New(env);
    for (int32_t dtype = 0; dtype < QF_DTYPE_COUNT; ++dtype) {
      if (device->backend->activation_dtypes >> dtype & 1) dtypes.Set(dtypes.Length(), qf_dtype_name(dtype));
    }
    entry.Set("activationDtypes", dtypes);
    list.Set(list.Length(), entry);
  }
  return list;
}

napi_value list_unused_devices(Environment&, Napi::Env env) {
  load_backend_libraries();
  Napi::Array list = Napi::Array::New(env);
  for (const UnusedDevice& unused : unused_devices()) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("device", unused.device);
    entry.Set("reason", unused.reason);
    list.Set(list.Length(), entry);
  }
  return list;
}

void set_threads(Environment&, Napi::Env, int64_t threads) {
  ops::check_range("setThreads", "threads", threads, 1, 1024);
  cpu::set_threads(static_cast<int32_t>(threads));
}

void trim_memory(Environment&, Napi::Env) { cpu::trim_memory(); }

double get_threads(Environment&, Napi::Env) { return cpu::threads(); }

}  // namespace qformer::napi
