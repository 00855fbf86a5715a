// The functions behind the Tensor class, scopes, graphs, mapped files and devices. Each becomes one JavaScript
// function.
#pragma once

#include "napi/environment.h"

namespace qformer::napi {

// Tensors
Tensor create(Environment&, Napi::Env, const Shape& shape, int64_t dtype, const std::string& device, bool zeroed);
Tensor from_data(Environment&, Napi::Env, napi_value data, const Shape& shape, int64_t dtype,
                 const std::string& device);
void write(Environment&, Napi::Env, const Tensor& x, napi_value data);
napi_value read(Environment&, Napi::Env, const Tensor& x);
napi_value shape_of(Environment&, Napi::Env, const Tensor& x);
double dtype_of(Environment&, Napi::Env, const Tensor& x);
napi_value device_of(Environment&, Napi::Env, const Tensor& x);
double is_dense(Environment&, Napi::Env, const Tensor& x);
double is_live(Environment&, Napi::Env, int64_t handle);
void dispose(Environment&, Napi::Env, int64_t handle);
double live_tensors(Environment&, Napi::Env);

// Scopes
double open_scope(Environment&, Napi::Env);
void close_scope(Environment&, Napi::Env, const std::vector<double>& kept);
void keep(Environment&, Napi::Env, int64_t handle);

// Graphs
double graph_begin(Environment&, Napi::Env);
void graph_end(Environment&, Napi::Env, int64_t graph);
void graph_replay(Environment&, Napi::Env, int64_t graph);
double graph_ops(Environment&, Napi::Env, int64_t graph);
void graph_dispose(Environment&, Napi::Env, int64_t graph);

// Mapped files
double file_open(Environment&, Napi::Env, const std::string& path);
double file_size(Environment&, Napi::Env, int64_t file);
napi_value file_bytes(Environment&, Napi::Env, int64_t file, int64_t offset, int64_t length);
Tensor file_tensor(Environment&, Napi::Env, int64_t file, int64_t offset, const Shape& shape, int64_t dtype,
                   const std::string& device);
void file_close(Environment&, Napi::Env, int64_t file);

// Devices and the process
// `all`: also those of backend libraries, which are opened for it.
napi_value list_devices(Environment&, Napi::Env, bool all);
napi_value list_unused_devices(Environment&, Napi::Env);
void set_threads(Environment&, Napi::Env, int64_t threads);
double get_threads(Environment&, Napi::Env);
void trim_memory(Environment&, Napi::Env);
void set_error_class(Environment&, Napi::Env, napi_value error_class);

}  // namespace qformer::napi
