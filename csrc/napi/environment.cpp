#include "napi/environment.h"

#include <algorithm>

namespace qformer::napi {

Handle Environment::add(Tensor tensor) {
  const Handle handle = tensors_.add(Owned{std::move(tensor), scope_depth()});
  if (handle == 0) fail(ErrorCode::kOutOfMemory, "%lld tensors are live: dispose some", static_cast<long long>(kMaxSlots));
  if (!scopes_.empty()) scopes_.back().push_back(handle);
  return handle;
}

Tensor& Environment::tensor(Handle handle) {
  Owned* owned = tensors_.find(handle);
  if (owned == nullptr) fail(ErrorCode::kStaleTensor, "the tensor was disposed, or its scope has ended");
  return owned->tensor;
}

void Environment::dispose(Handle handle) { tensors_.remove(handle); }

void Environment::open_scope() { scopes_.emplace_back(); }

void Environment::close_scope(const std::vector<Handle>& kept) {
  if (scopes_.empty()) fail(ErrorCode::kInternal, "no scope is open");
  const int64_t depth = scope_depth();
  const std::vector<Handle> made = std::move(scopes_.back());
  scopes_.pop_back();
  for (Handle handle : kept) {
    Owned* owned = tensors_.find(handle);
    if (owned == nullptr || owned->scope != depth) continue;
    owned->scope = depth - 1;
    if (!scopes_.empty()) scopes_.back().push_back(handle);
  }
  for (Handle handle : made) {
    const Owned* owned = tensors_.find(handle);
    if (owned != nullptr && owned->scope == depth) tensors_.remove(handle);
  }
}

void Environment::keep(Handle handle) {
  tensor(handle);
  tensors_.find(handle)->scope = 0;
}

}  // namespace qformer::napi
