#include "core/tensor.h"

namespace qformer {
Shape::Shape(std::initializer_list<int64_t> extents) {
  for (int64_t extent : extents) push_back(extent);
}

void Shape::push_back(int64_t extent) {
  if (rank_ == kMaxRank) fail(ErrorCode::kShape, "a tensor has at most %d axes", kMaxRank);
  extents_[rank_++] = extent;
}

void Shape::refuse() const {
  for (int axis = 0; axis < rank_; ++axis) {
    if (extents_[axis] < 0) fail(ErrorCode::kShape, "a tensor has no negative extent, got %s", text().c_str());
  }
  fail(ErrorCode::kShape, "shape %s has too many elements", text().c_str());
}

std::string Shape::text() const {
  std::string out = "[";
  for (int axis = 0; axis < rank_; ++axis) {
    if (axis > 0) out += ", ";
    out += std::to_string(extents_[axis]);
  }
  return out + "]";
}

}  // namespace qformer
