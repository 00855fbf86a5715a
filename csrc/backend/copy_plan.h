// A strided copy (QfCopy) reduced to as few axes as it has: unit axes dropped, neighbours merged where both sides
// allow. Used by every backend, on the host.
#pragma once

#include "backend.h"

namespace qformer {

// Element [i0, i1, i2, i3] of either side lies at the sum of i * stride; axis 3 is the innermost.
struct CopyPlan {
  int64_t shape[4] = {1, 1, 1, 1};
  int64_t x_strides[4] = {0, 0, 0, 1};
  int64_t y_strides[4] = {0, 0, 0, 1};
};

inline CopyPlan plan_copy(const QfCopy& a) {
  CopyPlan plan;
  int last = 4;
  for (int axis = 3; axis >= 0; --axis) {
    if (a.shape[axis] == 1) continue;
    if (last < 4 && a.x_strides[axis] == plan.x_strides[last] * plan.shape[last] &&
        a.y_strides[axis] == plan.y_strides[last] * plan.shape[last]) {
      plan.shape[last] *= a.shape[axis];
      continue;
    }
    --last;
    plan.shape[last] = a.shape[axis];
    plan.x_strides[last] = a.x_strides[axis];
    plan.y_strides[last] = a.y_strides[axis];
  }
  return plan;
}

}  // namespace qformer
