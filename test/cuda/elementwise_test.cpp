// Binary arithmetic, activations and strided copies on the emulated GPU: against double references, and copies against
// the CPU backend, whose bits they share.
#include <functional>

#include "cpu/cpu_backend.h"
#include "device_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

constexpr int32_t kDtypes[] = {QF_F32, QF_F16, QF_BF16};

struct BinaryCase {
  int64_t rows, cols, lda, ldb;
  int32_t dtype, op;
};

double combined(double a, double b, int32_t op) {
  return op == QF_ADD ? a + b : op == QF_SUB ? a - b : op == QF_MUL ? a * b : a / b;
}

void check_binary(const BinaryCase& c) {
  const int64_t rows_b = c.ldb == 0 ? 1 : c.rows;
  const auto a = rounded(Random(1).floats(c.rows * c.cols, 3.0f), c.dtype);
  auto b = Random(2).floats(rows_b * c.cols, 3.0f);
  for (float& value : b) value += value < 0 ? -0.25f : 0.25f;  // a divisor near 0 would overflow f16
  b = rounded(b, c.dtype);
  const DeviceArray left(strided(a, c.rows, c.cols, c.lda), c.dtype);
  const DeviceArray right(strided(b, rows_b, c.cols, c.ldb == 0 ? c.cols : c.ldb), c.dtype);
  const DeviceArray y(std::vector<float>(a.size(), NAN), c.dtype);
  const QfBinaryArgs args = {left.data(), right.data(), y.data(), c.rows, c.cols, c.lda, c.ldb, c.op, c.dtype};
  CHECK_EQ(backend().binary(0, &args), QF_OK);
  std::vector<double> expected, tolerance;
  for (int64_t i = 0; i < c.rows * c.cols; ++i) {
    const double other = b[static_cast<size_t>(c.ldb == 0 ? i % c.cols : i)];
    expected.push_back(combined(a[static_cast<size_t>(i)], other, c.op));
    // one rounding to f32 and one to dtype; the smallest f16 unit is 2^-24
    tolerance.push_back((roundoff(c.dtype) + 0x1p-24) * std::abs(expected.back()) + (c.dtype == QF_F16 ? 0x1p-25 : 0));
  }
  check_close(y.read(), expected, tolerance, "binary op " + std::to_string(c.op));
}

double activated(double x, int32_t activation) {
  switch (activation) {
    case QF_ACT_GELU_ERF:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case QF_ACT_GELU_TANH:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case QF_ACT_RELU:
      return x > 0 ? x : 0;
    case QF_ACT_SILU:
      return x / (1 + std::exp(-x));
    default:
      return x;
  }
}

void check_unary(int64_t rows, int64_t cols, int64_t ld, int32_t dtype, int32_t activation) {
  const auto x = rounded(Random(3).floats(rows * cols, 6.0f), dtype);
  const float scale = 0.75f, shift = -0.125f;
  const DeviceArray in(strided(x, rows, cols, ld), dtype), y(std::vector<float>(x.size(), NAN), dtype);
  const QfUnary args = {in.data(), y.data(), rows, cols, ld, activation, dtype, scale, shift};
  CHECK_EQ(backend().unary(0, &args), QF_OK);
  std::vector<double> expected, tolerance;
  for (const float value : x) {
    expected.push_back(activated(value, activation) * scale + shift);
    // 1 + erf and 1 + tanh cancel for negative x, which leaves units of 1 times |x|
    tolerance.push_back(roundoff(dtype) * std::abs(expected.back()) + 4 * 0x1p-24 * (1 + std::abs(value)));
  }
  check_close(y.read(), expected, tolerance, "activation " + std::to_string(activation));
}

std::vector<uint8_t> random_bytes(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.next());
  return bytes;
}

// Runs the copy on both backends from the same bytes; `x_count`, `y_count` in elements.
void check_copy(QfCopy copy, size_t x_count, size_t y_count, const std::string& what) {
  const size_t x_size = qf_dtype_size(copy.x_dtype), y_size = qf_dtype_size(copy.y_dtype);
  std::vector<uint8_t> x = random_bytes(x_count * x_size, 4);
  // A conversion may answer a NaN with any NaN, so there they are left out.
  if (copy.x_dtype != copy.y_dtype) x = encoded(Random(5).floats(static_cast<int64_t>(x_count), 1e5f), copy.x_dtype);
  std::vector<uint8_t> expected(y_count * y_size, 0x5a);
  DeviceBytes in(x.size()), out(expected.size());
  in.upload(x.data());
  out.upload(expected.data());
  copy.x = x.data();
  copy.y = expected.data();
  CHECK_EQ(qformer::cpu::cpu_backend()->copy(0, &copy), QF_OK);
  copy.x = in.data();
  copy.y = out.data();
  CHECK_EQ(backend().copy(0, &copy), QF_OK);
  if (out.download() != expected) fail(__FILE__, __LINE__, what + " differs from the CPU's");
}

}  // namespace

TEST("binary ops are right for every dtype, apart rows and a broadcast row") {
  for (const int32_t dtype : kDtypes) {
    for (const int32_t op : {QF_ADD, QF_SUB, QF_MUL, QF_DIV}) check_binary({3, 257, 257, 257, dtype, op});
    check_binary({1, 1, 1, 1, dtype, QF_ADD});
    check_binary({7, 7, 9, 0, dtype, QF_MUL});
    check_binary({4, 1408, 1408, 0, dtype, QF_ADD});
    check_binary({4, 768, 776, 1536, dtype, QF_SUB});
    check_binary({2, 3000, 3001, 3000, dtype, QF_DIV});
  }
}

TEST("activations with scale and shift are right for every dtype") {
  for (const int32_t dtype : kDtypes) {
    for (int32_t activation = QF_ACT_NONE; activation <= QF_ACT_SILU; ++activation) {
      check_unary(3, 257, 300, dtype, activation);
      check_unary(2, 1408, 1408, dtype, activation);
    }
  }
}

TEST("an unknown dtype is refused and empty extents are harmless") {
  const QfBinaryArgs bad = {nullptr, nullptr, nullptr, 1, 1, 1, 1, QF_ADD, QF_I32};
  CHECK_EQ(backend().binary(0, &bad), QF_UNSUPPORTED);
  const QfBinaryArgs none = {nullptr, nullptr, nullptr, 0, 5, 5, 5, QF_ADD, QF_F32};
  CHECK_EQ(backend().binary(0, &none), QF_OK);
  const QfUnary thin = {nullptr, nullptr, 5, 0, 0, QF_ACT_SILU, QF_F16, 1, 0};
  CHECK_EQ(backend().unary(0, &thin), QF_OK);
  const QfCopy empty = {nullptr, nullptr, {1, 3, 0, 4}, {0, 0, 4, 1}, {0, 0, 4, 1}, QF_F32, QF_F16};
  CHECK_EQ(backend().copy(0, &empty), QF_OK);
  const QfCopy words = {nullptr, nullptr, {1, 1, 1, 4}, {0, 0, 0, 1}, {0, 0, 0, 1}, QF_I32, QF_F32};
  CHECK_EQ(backend().copy(0, &words), QF_UNSUPPORTED);
}

TEST("dense copies convert between floats and move every other dtype unchanged") {
  for (const int64_t n : {1, 7, 257, 5000}) {
    const auto count = static_cast<size_t>(n);
    for (const int32_t from : kDtypes) {
      for (const int32_t to : kDtypes) {
        check_copy({nullptr, nullptr, {1, 1, 1, n}, {0, 0, 0, 1}, {0, 0, 0, 1}, from, to}, count, count, "dense copy");
      }
    }
    for (const int32_t dtype : {QF_I32, QF_U8}) {
      check_copy({nullptr, nullptr, {1, 1, 1, n}, {0, 0, 0, 1}, {0, 0, 0, 1}, dtype, dtype}, count, count, "raw copy");
    }
  }
}

TEST("strided copies put every element in its place") {
  const std::pair<int32_t, int32_t> kinds[] = {
      {QF_F32, QF_F32}, {QF_F16, QF_F16}, {QF_U8, QF_U8}, {QF_F32, QF_BF16}, {QF_F16, QF_F32}};
  for (const auto& [from, to] : kinds) {
    // rows apart, dense within
    check_copy({nullptr, nullptr, {1, 2, 5, 33}, {0, 400, 40, 1}, {0, 165, 33, 1}, from, to}, 800, 330, "row copy");
    check_copy({nullptr, nullptr, {1, 2, 5, 64}, {0, 640, 64, 1}, {0, 400, 80, 1}, from, to}, 1280, 800, "row copy");
    // the last two axes exchanged: tiles
    check_copy({nullptr, nullptr, {1, 3, 70, 45}, {0, 3150, 1, 70}, {0, 3150, 45, 1}, from, to}, 9450, 9450, "turn");
    // heads to the front: [tokens, heads, dim] -> [heads, dim, tokens]
    check_copy({nullptr, nullptr, {1, 4, 40, 33}, {0, 40, 1, 160}, {0, 1320, 33, 1}, from, to}, 5280, 5280, "heads");
    // a dense axis of x that is not the next one
    check_copy({nullptr, nullptr, {2, 50, 3, 40}, {6000, 1, 50, 150}, {6000, 120, 40, 1}, from, to}, 12000, 12000,
               "far");
    // every other element, both sides strided
    check_copy({nullptr, nullptr, {1, 1, 9, 11}, {0, 0, 40, 3}, {0, 0, 30, 2}, from, to}, 400, 300, "strided copy");
    // one source for all rows
    check_copy({nullptr, nullptr, {1, 1, 9, 20}, {0, 0, 0, 1}, {0, 0, 20, 1}, from, to}, 20, 180, "broadcast copy");
  }
}
