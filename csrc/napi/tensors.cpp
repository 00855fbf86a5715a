#include "napi/tensors.h"

#include "ops/check.h"

namespace qformer::napi {
namespace {

int32_t check_dtype(int64_t dtype) {
  ops::check_range("tensor", "dtype", dtype, 0, QF_DTYPE_COUNT - 1);
  return static_cast<int32_t>(dtype);
}

struct Bytes {
  const void* data;
  int64_t length;
};

Bytes read_typed_array(napi_env env, napi_value value) {
  napi_typedarray_type type{};
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok) {
    fail(ErrorCode::kInvalidArgument, "the data must be a typed array");
  }
  static constexpr int64_t kSizes[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};  // in the order of napi_typedarray_type
  return {data, static_cast<int64_t>(length) * kSizes[type]};
}

napi_typedarray_type array_type(int32_t dtype) {
  switch (dtype) {
    case QF_F32:
      return napi_float32_array;
    case QF_I32:
      return napi_int32_array;
    case QF_U8:
      return napi_uint8_array;
    default:
      return napi_uint16_array;
  }
}

}  // namespace

Tensor create(Environment&, Napi::Env, const Shape& shape, int64_t dtype, const std::string& device, bool zeroed) {
  Device& target = find_device(device);
  return zeroed ? zeros_tensor(target, shape, check_dtype(dtype)) : empty_tensor(target, shape, check_dtype(dtype));
}

Tensor from_data(Environment&, Napi::Env env, napi_value data, const Shape& shape, int64_t dtype,
                 const std::string& device) {
  const Bytes bytes = read_typed_array(env, data);
  if (Graph::recording() != nullptr) {
    fail(ErrorCode::kInvalidArgument, "fromArray: host data cannot be recorded; make it before and keep it");
  }
  Tensor x = empty_tensor(find_device(device), shape, check_dtype(dtype));
  upload(x, bytes.data, bytes.length);
  return x;
}

void write(Environment&, Napi::Env env, const Tensor& x, napi_value data) {
  const Bytes bytes = read_typed_array(env, data);
  upload(x, bytes.data, bytes.length);
}

napi_value read(Environment&, Napi::Env env, const Tensor& x) {
  const int64_t bytes = x.count() * static_cast<int64_t>(qf_dtype_size(x.dtype));
  void* data = nullptr;
  napi_value buffer = nullptr;
  napi_value array = nullptr;
  if (napi_create_arraybuffer(env, static_cast<size_t>(bytes), &data, &buffer) != napi_ok) {
    fail(ErrorCode::kOutOfMemory, "reading %lld bytes: no memory for the array", static_cast<long long>(bytes));
  }
  download(x, data, bytes);
  napi_create_typedarray(env, array_type(x.dtype), static_cast<size_t>(x.count()), buffer, 0, &array);
  return array;
}

napi_value shape_of(Environment&, Napi::Env env, const Tensor& x) {
  napi_value shape = nullptr;
  napi_create_array_with_length(env, static_cast<size_t>(x.rank()), &shape);
  for (int axis = 0; axis < x.rank(); ++axis) {
    napi_set_element(env, shape, static_cast<uint32_t>(axis),
                     Napi::Number::New(env, static_cast<double>(x.shape[axis])));
  }
  return shape;
}

double dtype_of(Environment&, Napi::Env, const Tensor& x) { return x.dtype; }
napi_value device_of(Environment&, Napi::Env env, const Tensor& x) { return Napi::String::New(env, x.device().name); }
double is_dense(Environment&, Napi::Env, const Tensor& x) { return x.is_dense() ? 1 : 0; }

double is_live(Environment& environment, Napi::Env, int64_t handle) { return environment.is_live(handle) ? 1 : 0; }
void dispose(Environment& environment, Napi::Env, int64_t handle) { environment.dispose(handle); }
double live_tensors(Environment& environment, Napi::Env) { return static_cast<double>(environment.live()); }

double open_scope(Environment& environment, Napi::Env) {
  environment.open_scope();
  return static_cast<double>(environment.scope_depth());
}

void close_scope(Environment& environment, Napi::Env, const std::vector<double>& kept) {
  environment.close_scope(std::vector<Handle>(kept.begin(), kept.end()));
}

void keep(Environment& environment, Napi::Env, int64_t handle) { environment.keep(handle); }

void set_error_class(Environment& environment, Napi::Env env, napi_value error_class) {
  environment.error_class = Napi::Persistent(Napi::Value(env, error_class).As<Napi::Function>());
}

}  // namespace qformer::napi
