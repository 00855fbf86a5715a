// What one JavaScript environment (main thread or worker) owns: its tensors, scopes, graphs and mapped files. Destroyed
// with the environment, which frees everything a terminated worker left behind.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "core/graph.h"
#include "core/tensor.h"
#include "io/mapped_file.h"
#include "napi/slots.h"

namespace qformer::napi {

class Environment {
 public:
  // Registers a result with the innermost open scope. OUT_OF_MEMORY when 4,194,304 tensors are live.
  Handle add(Tensor&& tensor);
  // STALE_TENSOR when the handle was disposed.
  Tensor& tensor(Handle handle);
  // No-op for a stale handle, so that dispose() can be called twice.
  void dispose(Handle handle);
  bool is_live(Handle handle) { return tensors_.find(handle) != nullptr; }
  int64_t live() const { return tensors_.live(); }

  void open_scope();
  // Frees what the innermost scope made, except `kept`, which moves to the scope around it.
  void close_scope(const std::vector<Handle>& kept);
  // Takes a tensor out of its scope: it lives until it is disposed.
  void keep(Handle handle);
  int64_t scope_depth() const { return depth_; }

  Slots<std::shared_ptr<Graph>> graphs;
  Slots<std::shared_ptr<MappedFile>> files;
  Napi::FunctionReference error_class;  // QFormerError, set once by the binding

 private:
  struct Owned {
    Tensor tensor;
    int64_t scope;  // depth of the owning scope, 0: kept
  };
  Slots<Owned> tensors_;
  // The handles made in each open scope, [0, depth_); lists beyond keep their memory for the next scope.
  std::vector<std::vector<Handle>> scopes_;
  int64_t depth_ = 0;
  std::vector<Handle>& innermost() { return scopes_[static_cast<size_t>(depth_ - 1)]; }
};

}  // namespace qformer::napi
