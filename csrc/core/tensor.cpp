#include "core/tensor.h"

#include "core/graph.h"

namespace qformer {
namespace {

int64_t check_axis(const char* op, const Tensor& x, int64_t axis) {
  const int64_t resolved = axis < 0 ? axis + x.rank() : axis;
  if (resolved < 0 || resolved >= x.rank()) {
    fail(ErrorCode::kInvalidArgument, "%s: axis %lld does not exist in %s", op, static_cast<long long>(axis),
         x.shape.text().c_str());
  }
  return resolved;
}

void check_transfer(const char* op, const Tensor& x, int64_t bytes) {
  if (Graph::recording() != nullptr) {
    fail(ErrorCode::kInvalidArgument, "%s: host transfers cannot be recorded; use kept tensors as inputs", op);
  }
  if (!x.is_dense()) fail(ErrorCode::kShape, "%s: the tensor is a strided view; call contiguous() first", op);
  const int64_t expected = x.count() * static_cast<int64_t>(qf_dtype_size(x.dtype));
  if (bytes != expected) {
    fail(ErrorCode::kShape, "%s: %s %s holds %lld bytes, got %lld", op, x.shape.text().c_str(), qf_dtype_name(x.dtype),
         static_cast<long long>(expected), static_cast<long long>(bytes));
  }
}

}  // namespace

Tensor empty_tensor(Device& device, const Shape& shape, int32_t dtype) {
  int64_t bytes = 0;
  if (__builtin_mul_overflow(shape.count(), static_cast<int64_t>(qf_dtype_size(dtype)), &bytes)) {
    fail(ErrorCode::kShape, "shape %s has too many elements", shape.text().c_str());
  }
  return Tensor(device, bytes, shape, dtype);
}

Tensor zeros_tensor(Device& device, const Shape& shape, int32_t dtype) {
  if (Graph::recording() != nullptr) fail(ErrorCode::kInvalidArgument, "zeros: cannot be recorded; make it before");
  Tensor x = empty_tensor(device, shape, dtype);
  check_status(device, device.backend->fill_zero(device.index, x.data(), static_cast<size_t>(x.storage->bytes)),
               "zeros");
  return x;
}

Tensor reshape(const Tensor& x, const Shape& shape) {
  if (shape.count() != x.count()) {
    fail(ErrorCode::kShape, "reshape: %s does not have as many elements as %s", shape.text().c_str(),
         x.shape.text().c_str());
  }
  if (!x.is_dense())
    fail(ErrorCode::kShape, "reshape: %s is a strided view; call contiguous() first", x.shape.text().c_str());
  Tensor y = x;
  y.shape = shape;
  y.strides = dense_strides(shape);
  return y;
}

Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t end) {
  axis = check_axis("slice", x, axis);
  const int64_t extent = x.shape[static_cast<int>(axis)];
  if (start < 0 || end < start || end > extent) {
    fail(ErrorCode::kInvalidArgument, "slice: [%lld, %lld) is not within axis %lld of %s",
         static_cast<long long>(start), static_cast<long long>(end), static_cast<long long>(axis),
         x.shape.text().c_str());
  }
  Tensor y = x;
  y.offset += start * x.strides[axis];
  y.shape[static_cast<int>(axis)] = end - start;
  return y;
}

Tensor select(const Tensor& x, int64_t axis, int64_t index) {
  axis = check_axis("select", x, axis);
  Tensor narrowed = slice(x, axis, index, index + 1);
  Tensor y = narrowed;
  y.shape = Shape{};
  for (int a = 0, out = 0; a < x.rank(); ++a) {
    if (a == axis) continue;
    y.shape.push_back(x.shape[a]);
    y.strides[out++] = x.strides[a];
  }
  return y;
}

Tensor transpose(const Tensor& x, int64_t axis_a, int64_t axis_b) {
  axis_a = check_axis("transpose", x, axis_a);
  axis_b = check_axis("transpose", x, axis_b);
  Tensor y = x;
  std::swap(y.shape[static_cast<int>(axis_a)], y.shape[static_cast<int>(axis_b)]);
  std::swap(y.strides[axis_a], y.strides[axis_b]);
  return y;
}

void upload(const Tensor& x, const void* source, int64_t bytes) {
  check_transfer("write", x, bytes);
  if (x.storage->read_only) fail(ErrorCode::kInvalidArgument, "write: the tensor is a read-only file mapping");
  check_status(x.device(), x.device().backend->upload(x.device().index, x.data(), source, static_cast<size_t>(bytes)),
               "write");
}

void download(const Tensor& x, void* target, int64_t bytes) {
  check_transfer("read", x, bytes);
  Device& device = x.device();
  check_status(device, device.backend->download(device.index, target, x.data(), static_cast<size_t>(bytes)), "read");
}

}  // namespace qformer
