// Problems for the tests of quant_linear: random codes, and the check against linear on the widened weights and against
// double.
#pragma once

#include "product_reference.h"
#include "random_data.h"

namespace qformer::test {

struct Codes {
  std::vector<uint8_t> q;
  std::vector<uint16_t> scales;  // bf16
};

struct QuantShape {
  int64_t n, k, group;
  int32_t bits;
};

inline Codes codes_of(const QuantShape& s) {
  return {std::vector<uint8_t>(static_cast<size_t>(s.n * s.k * s.bits / 8)),
          std::vector<uint16_t>(static_cast<size_t>(s.n * s.k / s.group))};
}

inline Codes random_codes(const QuantShape& s, Random& random) {
  Codes codes = codes_of(s);
  for (uint8_t& byte : codes.q) byte = static_cast<uint8_t>(random.next());
  for (uint16_t& scale : codes.scales) {
    const float value = (random.uniform(0.5f) + 1.0f) * (s.bits == 8 ? 0.002f : 0.03f);
    scale = cuda::prims::from_float<cuda::prims::BFloat16>(value).bits;
  }
  return codes;
}

inline std::vector<float> widened(const QuantShape& s, const Codes& codes) {
  std::vector<float> w(static_cast<size_t>(s.n * s.k));
  for (size_t i = 0; i < w.size(); ++i) {
    const int level = s.bits == 8 ? static_cast<int8_t>(codes.q[i]) : (codes.q[i / 2] >> (i % 2 * 4) & 15) - 8;
    const cuda::prims::BFloat16 scale{codes.scales[i / static_cast<size_t>(s.group)]};
    w[i] = static_cast<float>(level) * cuda::prims::to_float(scale);
  }
  return w;
}

struct QuantProduct {
  QuantShape shape;
  int64_t m;
  int32_t dtype, y_dtype;
  bool bias = false, residual = false, norm = false;
  int32_t activation = QF_ACT_NONE;
  int64_t pad_x = 0, pad_y = 0;
};

inline std::string name_of(const QuantProduct& c) {
  return "int" + std::to_string(c.shape.bits) + " " + qf_dtype_name(c.dtype) + " m " + std::to_string(c.m) + " n " +
         std::to_string(c.shape.n) + " k " + std::to_string(c.shape.k) + " group " + std::to_string(c.shape.group);
}

// quant_linear has the bits of linear on the widened weights, and is right.
inline void check_product(const QuantProduct& c, bool with_double) {
  const auto [n, k, group, bits] = c.shape;
  const int64_t ldx = k + c.pad_x, ldy = n + c.pad_y;
  Random random(static_cast<uint64_t>(n + k + c.m));
  const Codes codes = random_codes(c.shape, random);
  const std::vector<float> w = rounded(widened(c.shape, codes), c.dtype);
  const std::vector<float> x = rounded(random.floats(c.m * k), c.dtype), bias = random.floats(n);
  const std::vector<float> residual = rounded(random.floats(c.m * n), c.y_dtype), norm = random.floats(k);

  const DeviceArray dx(strided(x, c.m, k, ldx), c.dtype), dw(w, c.dtype), dbias(bias, QF_F32), dnorm(norm, QF_F32);
  const DeviceArray dresidual(strided(residual, c.m, n, ldy), c.y_dtype);
  DeviceBytes dq(codes.q.size()), dscales(codes.scales.size() * sizeof(uint16_t));
  dq.upload(codes.q.data());
  dscales.upload(codes.scales.data());
  const std::vector<float> blank(static_cast<size_t>(c.m * ldy), NAN);
  const DeviceArray y(blank, c.y_dtype), y_linear(blank, c.y_dtype);

  QfLinear linear = {};
  linear.x = dx.data();
  linear.w = dw.data();
  linear.bias = c.bias ? dbias.floats() : nullptr;
  linear.residual = c.residual ? dresidual.data() : nullptr;
  linear.norm_weight = c.norm ? dnorm.floats() : nullptr;
  linear.y = y_linear.data();
  linear.m = c.m;
  linear.n = n;
  linear.k = linear.ldw = k;
  linear.ldx = ldx;
  linear.ldr = linear.ldy = ldy;
  linear.norm_eps = 1e-6f;
  linear.dtype = linear.w_dtype = c.dtype;
  linear.y_dtype = c.y_dtype;
  linear.activation = c.activation;
  const QfQuantLinear quant = {linear.x,
                               static_cast<uint8_t*>(dq.data()),
                               static_cast<uint16_t*>(dscales.data()),
                               linear.bias,
                               linear.residual,
                               linear.norm_weight,
                               y.data(),
                               c.m,
                               n,
                               k,
                               group,
                               ldx,
                               ldy,
                               ldy,
                               1e-6f,
                               c.dtype,
                               c.y_dtype,
                               bits,
                               c.activation,
                               QF_MATH_F32};
  CHECK_EQ(backend().linear(0, &linear), QF_OK);
  if (backend().quant_linear(0, &quant) != QF_OK) fail(__FILE__, __LINE__, backend().last_error());
  if (y.bytes() != y_linear.bytes()) fail(__FILE__, __LINE__, name_of(c) + " differs from linear");
  if (!with_double) return;
  const Sums sums =
      product(normed_rows(x, c.norm ? norm : std::vector<float>{}, k, 1e-6, c.dtype), w, c.m, n, k, c.norm, c.dtype);
  std::vector<double> expected, tolerance;
  std::vector<float> actual;
  const std::vector<float> got = y.read();
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const auto at = static_cast<size_t>(i * n + j);
      const double before = sums.value[at] + (c.bias ? bias[static_cast<size_t>(j)] : 0.0);
      const double value = activated(before, c.activation) + (c.residual ? residual[at] : 0.0);
      expected.push_back(value);
      tolerance.push_back(1.2 * sums.error[at] + 0x1p-21 * (std::abs(before) + std::abs(value)) +
                          roundoff(c.y_dtype) * (std::abs(value) + sums.error[at]));
      actual.push_back(got[static_cast<size_t>(i * ldy + j)]);
    }
  }
  check_close(actual, expected, tolerance, name_of(c));
}

}  // namespace qformer::test
