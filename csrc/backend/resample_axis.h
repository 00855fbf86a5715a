// Filter taps of one axis of Pillow's BICUBIC resize (libImaging/Resample.c): Keys' cubic with a = -0.5, widened by the
// shrink factor, as integers with 22 fractional bits. All arithmetic is f64 in Pillow's order, so that the taps agree
// bit for bit; this file must be compiled without contraction into fused multiply-add (-ffp-contract=off). Every
// backend takes its taps from here, on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace qformer {

// Output i is the sum over k < count[i] of weights[i * taps + k] * input[first[i] + k].
struct ResampleAxis {
  static constexpr int kBits = 22;  // fractional bits of the weights
  int64_t taps = 0;
  std::vector<int64_t> first, count;
  std::vector<int32_t> weights;
};

inline double keys_cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

inline ResampleAxis make_resample_axis(int64_t in, int64_t out) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale;
  const double inverse = 1.0 / filter_scale;
  ResampleAxis axis;
  axis.taps = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  axis.first.resize(static_cast<size_t>(out));
  axis.count.resize(static_cast<size_t>(out));
  axis.weights.assign(static_cast<size_t>(out * axis.taps), 0);
  std::vector<double> taps(static_cast<size_t>(axis.taps));
  for (int64_t i = 0; i < out; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const int64_t lo = std::max<int64_t>(0, static_cast<int64_t>(centre - support + 0.5));
    const int64_t hi = std::min<int64_t>(in, static_cast<int64_t>(centre + support + 0.5));
    double sum = 0.0;
    for (int64_t k = 0; k < hi - lo; ++k) {
      taps[k] = keys_cubic((static_cast<double>(k + lo) - centre + 0.5) * inverse);
      sum += taps[k];
    }
    axis.first[i] = lo;
    axis.count[i] = hi - lo;
    for (int64_t k = 0; k < hi - lo; ++k) {
      const double weight = (sum != 0.0 ? taps[k] / sum : taps[k]) * (1 << ResampleAxis::kBits);
      axis.weights[i * axis.taps + k] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
  }
  return axis;
}

}  // namespace qformer
