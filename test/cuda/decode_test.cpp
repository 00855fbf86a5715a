// linear and gated linear of few rows on the emulated GPU: against double references, and that a row's bits do not
// depend on m.
#include <string>

#include "device_array.h"
#include "emulator/launch.h"
#include "product_reference.h"
#include "random_data.h"

using namespace qformer;
using namespace qformer::test;

namespace {

struct Shape {
  int64_t m, n, k;
  int32_t dtype = QF_F16, w_dtype = QF_F16, y_dtype = QF_F16;
  bool norm = false, bias = false, residual = false;
  int32_t activation = QF_ACT_NONE, math = QF_MATH_F32;
  int64_t pad_x = 0, pad_w = 0, pad_y = 0;  // elements between rows
  size_t shift_w = 0, shift_x = 0;          // elements before the first row
};

std::string describe(const char* op, const Shape& s) {
  return std::string(op) + " m " + std::to_string(s.m) + " n " + std::to_string(s.n) + " k " + std::to_string(s.k) +
         " " + qf_dtype_name(s.dtype) + "/" + qf_dtype_name(s.w_dtype) + "/" + qf_dtype_name(s.y_dtype) +
         (s.norm ? " norm" : "");
}

struct Inputs {
  std::vector<float> x, w, w_up, norm, bias, residual;

  explicit Inputs(const Shape& s, uint64_t seed = 1) {
    Random random(seed);
    w = rounded(random.floats(s.n * s.k, 0.5f), s.w_dtype);
    w_up = rounded(random.floats(s.n * s.k, 0.5f), s.w_dtype);
    if (s.norm) norm = random.floats(s.k, 1.5f);
    if (s.bias) bias = random.floats(s.n);
    x = rounded(random.floats(s.m * s.k, 2.0f), s.dtype);
    if (s.residual) residual = rounded(random.floats(s.m * s.n), s.y_dtype);
  }
};

// Rows of y as bytes and as floats, the gap left out.
struct Output {
  std::vector<uint8_t> bytes;
  std::vector<float> values;
};

Output dense_rows(const DeviceArray& y, const Shape& s, int64_t ld) {
  Output out;
  const std::vector<uint8_t> bytes = y.bytes();
  const std::vector<float> values = y.read();
  const size_t width = qf_dtype_size(s.y_dtype);
  for (int64_t r = 0; r < s.m; ++r) {
    const size_t at = static_cast<size_t>(r * ld);
    out.bytes.insert(out.bytes.end(), &bytes[at * width], &bytes[at * width] + static_cast<size_t>(s.n) * width);
    out.values.insert(out.values.end(), &values[at], &values[at] + s.n);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (static_cast<int64_t>(i) % ld >= s.n) CHECK(std::isnan(values[i]));  // the gap is untouched
  }
  return out;
}

Output run_linear(const Shape& s, const Inputs& in) {
  const int64_t ldx = s.k + s.pad_x, ldw = s.k + s.pad_w, ldy = s.n + s.pad_y;
  const DeviceArray x(strided(in.x, s.m, s.k, ldx), s.dtype, s.shift_x),
      w(strided(in.w, s.n, s.k, ldw), s.w_dtype, s.shift_w);
  const DeviceArray norm(in.norm, QF_F32), bias(in.bias, QF_F32), residual(in.residual, s.y_dtype);
  const DeviceArray y(std::vector<float>(static_cast<size_t>(s.m * ldy), NAN), s.y_dtype);
  const QfLinear args = {x.data(),
                         w.data(),
                         s.bias ? bias.floats() : nullptr,
                         s.residual ? residual.data() : nullptr,
                         s.norm ? norm.floats() : nullptr,
                         y.data(),
                         s.m,
                         s.n,
                         s.k,
                         ldx,
                         ldw,
                         s.n,
                         ldy,
                         1e-6f,
                         s.dtype,
                         s.w_dtype,
                         s.y_dtype,
                         s.activation,
                         s.math};
  CHECK_EQ(backend().linear(0, &args), QF_OK);
  return dense_rows(y, s, ldy);
}

Output run_gated(const Shape& s, const Inputs& in) {
  const int64_t ldx = s.k + s.pad_x, ldw = s.k + s.pad_w, ldy = s.n + s.pad_y;
  const DeviceArray x(strided(in.x, s.m, s.k, ldx), s.dtype, s.shift_x);
  const DeviceArray gate(strided(in.w, s.n, s.k, ldw), s.w_dtype, s.shift_w),
      up(strided(in.w_up, s.n, s.k, ldw), s.w_dtype);
  const DeviceArray norm(in.norm, QF_F32);
  const DeviceArray y(std::vector<float>(static_cast<size_t>(s.m * ldy), NAN), s.dtype);
  const QfGatedLinear args = {x.data(), gate.data(), up.data(),    s.norm ? norm.floats() : nullptr,
                              y.data(), s.m,         s.n,          s.k,
                              ldx,      ldw,         ldy,          1e-6f,
                              s.dtype,  s.w_dtype,   s.activation, s.math};
  CHECK_EQ(backend().gated_linear(0, &args), QF_OK);
  return dense_rows(y, s, ldy);
}

std::vector<float> effective_x(const Shape& s, const Inputs& in) {
  std::vector<float> x = normed_rows(in.x, in.norm, s.k, 1e-6, s.dtype);
  return s.math == QF_MATH_BF16 && s.w_dtype == QF_BF16 ? rounded(x, QF_BF16) : x;
}

void check_linear(const Shape& s) {
  const Inputs in(s);
  const Output got = run_linear(s, in);
  Sums sums = product(effective_x(s, in), in.w, s.m, s.n, s.k, s.norm, s.math == QF_MATH_BF16 ? QF_BF16 : s.dtype);
  for (int64_t i = 0; i < s.m * s.n; ++i) {
    const size_t at = static_cast<size_t>(i);
    double& y = sums.value[at];
    if (s.bias) y += in.bias[static_cast<size_t>(i % s.n)];
    y = activated(y, s.activation);
    if (s.residual) y += in.residual[at];
    // The activations' slopes stay below 1.13; a few f32 roundings of the epilogue, then the one to y_dtype.
    sums.error[at] = 1.13 * sums.error[at] + roundoff(s.y_dtype) * std::abs(y) + 8 * 0x1p-24 * (std::abs(y) + 1);
  }
  check_close(got.values, sums.value, sums.error, describe("linear", s));
}

void check_gated(const Shape& s) {
  const Inputs in(s);
  const Output got = run_gated(s, in);
  const std::vector<float> x = effective_x(s, in);
  const int32_t x_dtype = s.math == QF_MATH_BF16 ? QF_BF16 : s.dtype;
  const Sums gate = product(x, in.w, s.m, s.n, s.k, s.norm, x_dtype),
             up = product(x, in.w_up, s.m, s.n, s.k, s.norm, x_dtype);
  std::vector<double> y(gate.value.size()), error(gate.value.size());
  for (size_t i = 0; i < y.size(); ++i) {
    const double g = activated(gate.value[i], s.activation);
    y[i] = g * up.value[i];
    const double g_error = 1.13 * gate.error[i] + 8 * 0x1p-24 * (std::abs(g) + 1);
    error[i] = g_error * std::abs(up.value[i]) + std::abs(g) * up.error[i] + g_error * up.error[i] +
               (roundoff(s.dtype) + 0x1p-23) * std::abs(y[i]) + 1e-30;
  }
  check_close(got.values, y, error, describe("gated", s));
}

Shape with(int64_t m, int64_t n, int64_t k, int32_t dtype) {
  Shape s{m, n, k};
  s.dtype = s.w_dtype = s.y_dtype = dtype;
  return s;
}

constexpr int32_t kDtypes[] = {QF_F16, QF_BF16, QF_F32};

}  // namespace

TEST("decode linear agrees with a double reference at odd shapes") {
  for (int32_t dtype : kDtypes) {
    for (int64_t m : {1, 2, 3, 4, 5, 8, 13, 16}) check_linear(with(m, 17, 88, dtype));
    for (int64_t n : {1, 7, 257}) check_linear(with(3, n, 24, dtype));
    for (int64_t k : {1, 2, 8, 257, 1408}) check_linear(with(2, 7, k, dtype));
  }
}

TEST("decode linear serves up to 32 rows of 16 bits") {
  for (int32_t dtype : {QF_F16, QF_BF16}) {
    for (int64_t m : {17, 24, 31, 32}) check_linear(with(m, 40, 136, dtype));
  }
}

TEST("decode linear normalises its rows first, staged, prepared, and from rows that are not aligned") {
  for (int32_t dtype : kDtypes) {
    for (int64_t m : {1, 4, 5, 16}) {
      Shape s = with(m, 33, 264, dtype);
      s.norm = true;
      check_linear(s);
      s.pad_x = 3;
      check_linear(s);
    }
    Shape s = with(2, 9, 257, dtype);
    s.norm = true;
    check_linear(s);
  }
}

TEST("up to 4 rows are normalised inside the product's kernel, more before it") {
  for (int64_t m : {1, 4, 5}) {
    Shape s = with(m, 33, 4096, QF_F16);
    s.norm = true;
    const Inputs in(s);
    const auto kernels = [&](auto run) {
      const uint64_t before = emulator::counters().launches;
      run(s, in);
      return emulator::counters().launches - before;
    };
    CHECK_EQ(kernels(run_linear), m <= 4 ? uint64_t{1} : uint64_t{2});
    CHECK_EQ(kernels(run_gated), m <= 4 ? uint64_t{1} : uint64_t{2});
  }
}

TEST("decode linear adds bias and residual around every activation, into f32 or the activations' dtype") {
  for (int32_t dtype : kDtypes) {
    for (int32_t activation : {QF_ACT_NONE, QF_ACT_GELU_ERF, QF_ACT_GELU_TANH, QF_ACT_RELU, QF_ACT_SILU}) {
      for (int32_t y_dtype : {dtype, static_cast<int32_t>(QF_F32)}) {
        Shape s = with(3, 19, 64, dtype);
        s.y_dtype = y_dtype;
        s.activation = activation;
        s.bias = s.residual = true;
        check_linear(s);
      }
    }
  }
}

TEST("decode linear takes rows of x, w and y that are apart or begin anywhere") {
  for (int32_t dtype : kDtypes) {
    for (int64_t pad : {1, 8}) {
      Shape s = with(5, 18, 72, dtype);
      s.pad_x = s.pad_w = s.pad_y = pad;
      check_linear(s);
      s.shift_w = s.shift_x = 1;
      check_linear(s);
    }
  }
}

TEST("decode linear of f32 takes 16-bit weights, and rounds x to bf16 on request") {
  for (int32_t w_dtype : {QF_F16, QF_BF16}) {
    for (int64_t m : {1, 9}) {
      Shape s = with(m, 21, 132, QF_F32);
      s.w_dtype = w_dtype;
      check_linear(s);
      s.math = QF_MATH_BF16;
      s.norm = true;
      check_linear(s);
    }
  }
}

TEST("decode gated linear agrees with a double reference") {
  for (int32_t dtype : kDtypes) {
    for (int64_t m : {1, 3, 4, 7, 13, 16}) {
      for (const bool norm : {false, true}) {
        Shape s = with(m, 23, 88, dtype);
        s.activation = QF_ACT_SILU;
        s.norm = norm;
        check_gated(s);
      }
    }
    Shape s = with(2, 257, 257, dtype);
    s.activation = QF_ACT_GELU_TANH;
    check_gated(s);
    s = with(4, 9, 40, dtype);
    s.pad_x = s.pad_w = s.pad_y = 3;
    s.shift_w = 1;
    s.norm = true;
    check_gated(s);
  }
  for (int64_t m : {29, 32}) check_gated(with(m, 17, 72, QF_BF16));
}

TEST("nothing happens for no rows") {
  CHECK_EQ(run_linear(with(0, 5, 8, QF_F16), Inputs(with(0, 5, 8, QF_F16))).bytes.size(), 0u);
  CHECK_EQ(run_gated(with(0, 5, 8, QF_F32), Inputs(with(0, 5, 8, QF_F32))).bytes.size(), 0u);
}

// The first and the last rows of 70, which the GEMM multiplies, against the same rows in groups that other kernels
// serve, byte for byte.
void check_row_bits(Shape all) {
  all.m = 70;
  const Inputs in(all);
  const Output linear = run_linear(all, in), gated = run_gated(all, in);
  for (int64_t m : {1, 4, 5, 9, 17, 32, 33}) {
    Shape some = all;
    some.m = m;
    for (const int64_t first : {int64_t{0}, all.m - m}) {
      Inputs part = in;
      part.x.assign(in.x.begin() + first * all.k, in.x.begin() + (first + m) * all.k);
      if (all.residual)
        part.residual.assign(in.residual.begin() + first * all.n, in.residual.begin() + (first + m) * all.n);
      const auto same = [&](const Output& few, const Output& many) {
        const size_t row = many.bytes.size() / static_cast<size_t>(all.m);
        const auto begin = many.bytes.begin() + first * static_cast<int64_t>(row);
        return few.bytes == std::vector<uint8_t>(begin, begin + m * static_cast<int64_t>(row));
      };
      const std::string what = describe("rows", some) + " from " + std::to_string(first);
      if (!same(run_linear(some, part), linear)) fail(__FILE__, __LINE__, "linear, " + what);
      if (all.y_dtype == all.dtype && !same(run_gated(some, part), gated)) fail(__FILE__, __LINE__, "gated, " + what);
    }
  }
}

TEST("a row has the same bits whatever rows stand beside it") {
  for (int32_t dtype : kDtypes) {
    for (const bool norm : {false, true}) {
      for (int64_t k : {200, 203}) {
        Shape s = with(0, 37, k, dtype);
        s.norm = norm;
        s.activation = QF_ACT_SILU;
        check_row_bits(s);
      }
    }
  }
}

TEST("so it has where k is cut into chunks, through every epilogue, and with long norms") {
  for (int32_t dtype : {QF_F16, QF_BF16}) {
    for (int64_t k : {1408, 1416, 2304, 3072}) {  // 2, 3 and 4 chunks, with a tail
      Shape s = with(0, 21, k, dtype);
      s.norm = k != 2304;
      s.bias = s.residual = true;
      s.activation = k == 3072 ? QF_ACT_GELU_TANH : QF_ACT_GELU_ERF;
      check_row_bits(s);
      s.y_dtype = QF_F32;
      s.pad_x = s.pad_w = s.pad_y = 8;
      check_row_bits(s);
    }
    Shape s = with(0, 3, 4608, dtype);
    s.norm = true;
    check_row_bits(s);
  }
}

TEST("no shared memory access of the streaming product conflicts") {
  emulator::count_bank_conflicts(true);
  for (int64_t m : {8, 16, 32}) {
    const Shape s = with(m, 64, 1408, QF_F16);
    const Inputs in(s);
    const emulator::Counters before = emulator::counters();
    run_linear(s, in);
    CHECK(emulator::counters().shared_wavefronts > before.shared_wavefronts);
    CHECK_EQ(emulator::counters().bank_conflicts - before.bank_conflicts, uint64_t{0});
  }
  emulator::count_bank_conflicts(false);
}
