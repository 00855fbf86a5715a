// quantize on the emulated GPU gives the CPU backend's bits; quant_linear gives those of linear on the widened weights,
// and what both stand for is compared with double.
#include "cpu/cpu_backend.h"
#include "product_reference.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

constexpr int32_t kDtypes[] = {QF_F32, QF_F16, QF_BF16};

struct Codes {
  std::vector<uint8_t> q;
  std::vector<float> scales;
};

struct Shape {
  int64_t n, k, group;
  int32_t bits;
};

QfQuantize quantize_args(const Shape& s, const void* w, int64_t ldw, int32_t dtype, uint8_t* q, float* scales) {
  return {w, q, scales, s.n, s.k, ldw, s.group, dtype, s.bits};
}

Codes codes_of(const Shape& s) {
  return {std::vector<uint8_t>(static_cast<size_t>(s.n * s.k * s.bits / 8)),
          std::vector<float>(static_cast<size_t>(s.n * s.k / s.group))};
}

Codes quantized_on_cpu(const Shape& s, const std::vector<uint8_t>& w, int64_t ldw, int32_t dtype) {
  Codes codes = codes_of(s);
  const QfQuantize args = quantize_args(s, w.data(), ldw, dtype, codes.q.data(), codes.scales.data());
  CHECK_EQ(qformer::cpu::cpu_backend()->quantize(0, &args), QF_OK);
  return codes;
}

void check_quantize(const Shape& s, const std::vector<float>& values, int32_t dtype, int64_t padding = 0) {
  const int64_t ldw = s.k + padding;
  const auto w = encoded(strided(values, s.n, s.k, ldw), dtype);
  const Codes expected = quantized_on_cpu(s, w, ldw, dtype);
  DeviceBytes weights(w.size());
  weights.upload(w.data());
  const DeviceBytes q(expected.q.size()), scales(expected.scales.size() * sizeof(float));
  const QfQuantize args =
      quantize_args(s, weights.data(), ldw, dtype, static_cast<uint8_t*>(q.data()), static_cast<float*>(scales.data()));
  CHECK_EQ(backend().quantize(0, &args), QF_OK);
  const auto got_scales = scales.download();
  const bool same =
      q.download() == expected.q && std::memcmp(got_scales.data(), expected.scales.data(), got_scales.size()) == 0;
  if (same) return;
  fail(__FILE__, __LINE__,
       "int" + std::to_string(s.bits) + " of " + qf_dtype_name(dtype) + " " + std::to_string(s.n) + " x " +
           std::to_string(s.k) + " in groups of " + std::to_string(s.group) + " differs from the CPU's");
}

std::vector<float> widened(const Shape& s, const Codes& codes) {
  std::vector<float> w(static_cast<size_t>(s.n * s.k));
  for (size_t i = 0; i < w.size(); ++i) {
    const int level = s.bits == 8 ? static_cast<int8_t>(codes.q[i]) : (codes.q[i / 2] >> (i % 2 * 4) & 15) - 8;
    w[i] = static_cast<float>(level) * codes.scales[i / static_cast<size_t>(s.group)];
  }
  return w;
}

struct Case {
  Shape shape;
  int64_t m;
  int32_t dtype, y_dtype;
  bool bias = false, residual = false, norm = false;
  int32_t activation = QF_ACT_NONE;
  int64_t pad_x = 0, pad_y = 0;
};

std::string name_of(const Case& c) {
  return "int" + std::to_string(c.shape.bits) + " " + qf_dtype_name(c.dtype) + " m " + std::to_string(c.m) + " n " +
         std::to_string(c.shape.n) + " k " + std::to_string(c.shape.k) + " group " + std::to_string(c.shape.group);
}

// Runs quant_linear and linear; returns what the first gave.
void check_case(const Case& c, bool with_double) {
  const auto [n, k, group, bits] = c.shape;
  const int64_t ldx = k + c.pad_x, ldy = n + c.pad_y;
  Random random(static_cast<uint64_t>(n + k + c.m));
  const Codes codes = quantized_on_cpu(c.shape, encoded(random.floats(n * k, 0.2f), QF_F32), k, QF_F32);
  const std::vector<float> w = rounded(widened(c.shape, codes), c.dtype);
  const std::vector<float> x = rounded(random.floats(c.m * k), c.dtype), bias = random.floats(n);
  const std::vector<float> residual = rounded(random.floats(c.m * n), c.y_dtype), norm = random.floats(k);

  const DeviceArray dx(strided(x, c.m, k, ldx), c.dtype), dw(w, c.dtype), dbias(bias, QF_F32), dnorm(norm, QF_F32);
  const DeviceArray dresidual(strided(residual, c.m, n, ldy), c.y_dtype), dscales(codes.scales, QF_F32);
  DeviceBytes dq(codes.q.size());
  dq.upload(codes.q.data());
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
                               dscales.floats(),
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
                               c.activation};
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

}  // namespace

TEST("quantize gives the CPU's codes and scales for every dtype, group and stride") {
  constexpr Shape kShapes[] = {{3, 64, 32, 8}, {3, 64, 32, 4},   {5, 96, 96, 8},  {5, 96, 96, 4},  {7, 6, 2, 8},
                               {7, 6, 2, 4},   {2, 258, 258, 8}, {2, 258, 86, 4}, {1, 128, 64, 8}, {1, 130, 26, 4}};
  for (const int32_t dtype : kDtypes) {
    for (const Shape& shape : kShapes) {
      check_quantize(shape, Random(1).floats(shape.n * shape.k), dtype);
      check_quantize(shape, Random(2).floats(shape.n * shape.k), dtype, 3);
    }
  }
}

TEST("quantize takes zeros, subnormals, infinities and NaN as the CPU does") {
  std::vector<float> w = Random(3).floats(6 * 32);
  for (size_t i = 0; i < 32; ++i) w[i] = 0.0f;
  for (size_t i = 32; i < 64; ++i) w[i] *= 0x1p-140f;
  w[70] = INFINITY;
  w[100] = NAN;
  for (size_t i = 128; i < 160; ++i) w[i] = NAN;
  for (size_t i = 160; i < 192; ++i) w[i] = (static_cast<float>(i) - 175.5f) * 0.5f;  // ties
  for (const int32_t dtype : kDtypes)
    for (const int32_t bits : {8, 4}) check_quantize({3, 64, 32, bits}, w, dtype);
}

TEST("quant_linear has the bits of linear on the widened weights and is right, with every epilogue") {
  for (const int32_t dtype : kDtypes) {
    for (const int32_t bits : {8, 4}) {
      for (const int64_t m : {1, 7, 40}) {
        check_case({{51, 96, 32, bits}, m, dtype, dtype}, true);
        check_case({{51, 96, 32, bits}, m, dtype, QF_F32, true, true, true, QF_ACT_SILU}, true);
        check_case({{24, 64, 16, bits}, m, dtype, dtype, true, false, true, QF_ACT_GELU_ERF, 8, 8}, true);
      }
    }
  }
}

TEST("quant_linear takes groups and rows that fill no vector") {
  for (const int32_t dtype : kDtypes) {
    for (const int32_t bits : {8, 4}) {
      check_case({{17, 50, 10, bits}, 3, dtype, dtype, false, true, false, QF_ACT_NONE, 1, 3}, true);
      check_case({{9, 24, 6, bits}, 35, dtype, dtype}, true);
      check_case({{1, 2, 2, bits}, 1, dtype, dtype}, true);
    }
  }
}

TEST("slices of a large weight keep the order of the whole") {
  // Alone, 256 of these rows would be summed in two chunks of k, 2112 of them in one.
  for (const int32_t bits : {8, 4}) check_case({{2112, 1408, 128, bits}, 2, QF_F16, QF_F16, true, true}, false);
  check_case({{600, 1408, 64, 4}, 2, QF_BF16, QF_F32, true, true}, false);
  check_case({{600, 136, 8, 8}, 70, QF_F32, QF_F32, true, true}, false);
}

TEST("no rows, no columns and no k are no error") {
  const QfQuantize none = {nullptr, nullptr, nullptr, 0, 32, 32, 32, QF_F16, 8};
  CHECK_EQ(backend().quantize(0, &none), QF_OK);
  for (const int64_t m : {0, 3}) check_case({{5, 0, 2, 8}, m, QF_F16, QF_F16, true}, false);
}
