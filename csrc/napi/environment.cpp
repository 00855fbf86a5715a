#include "napi/environment.h"

#include <algorithm>

namespace qformer::napi {

Handle Environment::add(Tensor&& tensor) {
  const Handle handle = tensors_.add(std::move(tensor), scope_depth());
  if (handle == 0)
    fail(ErrorCode::kOutOfMemory, "%lld tensors are live: dispose some", static_cast<long long>(kMaxSlots));
  if (depth_ > 0) innermost().push_back(handle);
  return handle;
}

Tensor& Environment::tensor(Handle handle) {
  Owned* owned = tensors_.find(handle);
  if (owned == nullptr) fail(ErrorCode::kStaleTensor, "the tensor was disposed, or its scope has ended");
  return owned->tensor;
}

void Environment::dispose(Handle handle) { tensors_.remove(handle); }

void Environment::open_scope() {
  if (static_cast<size_t>(depth_) == scopes_.size()) scopes_.emplace_back();
  ++depth_;
}

void Environment::close_scope(const std::vector<Handle>& kept) {
  if (depth_ == 0) fail(ErrorCode::kInternal, "no scope is open");
  const int64_t depth = depth_;
  std::vector<Handle>& made = innermost();
  --depth_;
  for (Handle handle : kept) {
    Owned* owned = tensors_.find(handle);
    if (owned == nullptr || owned->scope != depth) continue;
    owned->scope = depth - 1;
    if (depth_ > 0) innermost().push_back(handle);
  }
  for (Handle handle : made) {
    tensors_.remove_if(handle, [depth](const Owned& owned) { return owned.scope == depth; });
  }
  made.clear();
}

void Environment::keep(Handle handle) {
  tensor(handle);
  tensors_.find(handle)->scope = 0;
}

}  // namespace qformer::napi
