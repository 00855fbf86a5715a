// Rotary embedding on the emulated GPU, against double precision of the same f32 angle.
#include <cmath>

#include "float_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

struct Problem {
  int64_t tokens = 3, heads = 2, head_dim = 64, gap = 0;  // gap: elements between tokens of x
  int32_t dtype = QF_F16;
};

void check(const Problem& p) {
  Random random(1);
  const int64_t half = p.head_dim / 2, width = p.heads * p.head_dim, stride = width + p.gap;
  const FloatArray x(p.dtype, random.floats(p.tokens * stride));
  const FloatArray y(p.dtype, static_cast<size_t>(p.tokens * width));
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < p.tokens; ++t) positions.push_back(static_cast<int32_t>(t * t * 37 + (t == 2 ? 3000 : 0)));
  std::vector<float> inv_freq;
  for (int64_t j = 0; j < half; ++j) {
    inv_freq.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(half))));
  }
  const TypedArray<int32_t> device_positions(positions);
  const TypedArray<float> device_inv_freq(inv_freq);
  QfRope args = {};
  args.x = x.data();
  args.positions = device_positions.data();
  args.inv_freq = device_inv_freq.data();
  args.y = y.data();
  args.tokens = p.tokens;
  args.heads = p.heads;
  args.head_dim = p.head_dim;
  args.x_stride = stride;
  args.dtype = p.dtype;
  const QfStatus status = backend().rope(0, &args);
  if (status != QF_OK) fail(__FILE__, __LINE__, backend().last_error());
  std::vector<double> expected, tolerance;
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const int64_t j = i % p.head_dim, pair = j % half;
      const float angle = static_cast<float>(positions[static_cast<size_t>(t)]) * inv_freq[static_cast<size_t>(pair)];
      const double c = std::cos(static_cast<double>(angle)), s = std::sin(static_cast<double>(angle));
      const auto at = static_cast<size_t>(t * stride + i);
      const double own = x.values[at],
                   other = x.values[j < half ? at + static_cast<size_t>(half) : at - static_cast<size_t>(half)];
      expected.push_back(own * c + (j < half ? -other : other) * s);
      // One rounding to the dtype of at most sqrt(2), beside a few f32 roundings of sine, cosine and the products.
      tolerance.push_back(1.5 * roundoff(p.dtype) + 4e-7);
    }
  }
  check_close(y.read(), expected, tolerance, "rope head_dim " + std::to_string(p.head_dim));
}

}  // namespace

TEST("rotates the halves of every head, in every dtype and head_dim, vectors or not") {
  for (const int64_t head_dim : {2, 6, 24, 32, 64, 80, 128}) {
    for (const int32_t dtype : {QF_F16, QF_BF16, QF_F32}) {
      for (const int64_t gap : {0, 3, 64}) {
        Problem p;
        p.head_dim = head_dim;
        p.dtype = dtype;
        p.gap = gap;
        check(p);
      }
    }
  }
}

TEST("many heads, one token, no token") {
  Problem wide;
  wide.tokens = 1;
  wide.heads = 33;
  check(wide);
  Problem nothing;
  nothing.tokens = 0;
  check(nothing);
}
