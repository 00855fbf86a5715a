#include "core/tensor.h"

namespace qformer {
namespace {

// More than any memory holds, and so little that sizes and strides derived from a shape stay far from overflow.
constexpr int64_t kMaxCount = int64_t{1} << 46;

}  // namespace

Shape::Shape(std::initializer_list<int64_t> extents) {
  for (int64_t extent : extents) push_back(extent);
}

void Shape::push_back(int64_t extent) {
  if (rank_ == kMaxRank) fail(ErrorCode::kShape, "a tensor has at most %d axes", kMaxRank);
  extents_[rank_++] = extent;
}

int64_t Shape::count() const {
  // Zero extents are left out of the product: the strides of an empty tensor must not overflow either.
  int64_t product = 1;
  bool empty = false;
  for (int axis = 0; axis < rank_; ++axis) {
    const int64_t extent = extents_[axis];
    if (extent < 0) fail(ErrorCode::kShape, "a tensor has no negative extent, got %s", text().c_str());
    empty = empty || extent == 0;
    if (extent != 0 && (__builtin_mul_overflow(product, extent, &product) || product > kMaxCount)) {
      fail(ErrorCode::kShape, "shape %s has too many elements", text().c_str());
    }
  }
  return empty ? 0 : product;
}

bool Shape::operator==(const Shape& other) const {
  if (rank_ != other.rank_) return false;
  for (int axis = 0; axis < rank_; ++axis) {
    if (extents_[axis] != other.extents_[axis]) return false;
  }
  return true;
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
