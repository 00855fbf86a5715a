// Elementwise ops on odd sizes, strided operands, and the copy between all float types.
#include <cmath>
#include <cstring>

#include "cpu/families.h"
#include "random_data.h"
#include "test.h"

using namespace qformer;
using qformer::test::Random;

TEST("binary ops take strided rows and broadcast one row") {
  for (const int64_t cols : {1, 7, 257}) {
    const auto a = Random(1).floats(3 * (cols + 2)), b = Random(2).floats(3 * (cols + 1));
    for (int32_t op = QF_ADD; op <= QF_DIV; ++op) {
      for (const int64_t ldb : {cols + 1, int64_t{0}}) {
        std::vector<float> y(static_cast<size_t>(3 * cols));
        const QfBinaryArgs args = {a.data(), b.data(), y.data(), 3, cols, cols + 2, ldb, op, QF_F32};
        CHECK_EQ(cpu::binary(0, &args), QF_OK);
        for (int64_t i = 0; i < 3 * cols; ++i) {
          const float u = a[i / cols * (cols + 2) + i % cols], v = b[i / cols * ldb + i % cols];
          CHECK_EQ(y[i], op == QF_ADD ? u + v : op == QF_SUB ? u - v : op == QF_MUL ? u * v : u / v);
        }
      }
    }
  }
}

TEST("activations agree with their formulas in double") {
  for (const int64_t cols : {1, 7, 257}) {
    const auto x = Random(3).floats(2 * cols, 6.0f);
    for (int32_t kind = QF_ACT_NONE; kind <= QF_ACT_SILU; ++kind) {
      std::vector<float> y(x.size());
      const QfUnary args = {x.data(), y.data(), 2, cols, cols, kind, QF_F32, 0.5f, 0.25f};
      CHECK_EQ(cpu::unary(0, &args), QF_OK);
      for (size_t i = 0; i < x.size(); ++i) {
        const double v = x[i];
        const double act[] = {v, v * 0.5 * (1 + std::erf(v / std::sqrt(2.0))),
                              v * 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))),
                              std::max(v, 0.0), v / (1 + std::exp(-v))};
        // a few units in the last place of values up to 6
        CHECK_NEAR(y[i], act[kind] * 0.5 + 0.25, 2e-6);
      }
    }
  }
}

TEST("a copy transposes axes and converts on the way") {
  const int64_t rows = 5, cols = 131;
  const auto x = Random(4).floats(rows * cols, 100.0f);
  std::vector<uint16_t> half(x.size());
  std::vector<float> back(x.size());
  for (const int32_t dtype : {QF_F16, QF_BF16}) {
    const QfCopy down = {x.data(), half.data(), {1, 1, cols, rows}, {0, 0, 1, cols}, {0, 0, rows, 1}, QF_F32, dtype};
    const QfCopy up = {half.data(), back.data(), {1, 1, rows, cols}, {0, 0, 1, rows}, {0, 0, cols, 1}, dtype, QF_F32};
    CHECK_EQ(cpu::copy(0, &down), QF_OK);
    CHECK_EQ(cpu::copy(0, &up), QF_OK);
    const double unit = dtype == QF_F16 ? 0x1p-11 : 0x1p-8;  // half a unit in the last place, relative
    for (size_t i = 0; i < x.size(); ++i) CHECK_NEAR(back[i], x[i], std::abs(x[i]) * unit + 0x1p-25);
  }
}

TEST("a copy rounds to the nearest even half") {
  const float x[] = {1.0f + 0x1p-8f, 1.0f + 3 * 0x1p-8f, 65520.0f, 0x1p-25f};
  uint16_t y[4];
  const QfCopy bf16 = {x, y, {1, 1, 1, 4}, {0, 0, 0, 1}, {0, 0, 0, 1}, QF_F32, QF_BF16};
  CHECK_EQ(cpu::copy(0, &bf16), QF_OK);
  CHECK_EQ(y[0], 0x3f80);
  CHECK_EQ(y[1], 0x3f82);
  const QfCopy f16 = {x, y, {1, 1, 1, 4}, {0, 0, 0, 1}, {0, 0, 0, 1}, QF_F32, QF_F16};
  CHECK_EQ(cpu::copy(0, &f16), QF_OK);
  CHECK_EQ(y[2], 0x7c00);
  CHECK_EQ(y[3], 0x0000);
}

TEST("a copy moves four axes of bytes and integers and broadcasts a zero stride") {
  const int64_t shape[4] = {2, 3, 4, 5};
  std::vector<int32_t> x(120), y(120);
  for (int i = 0; i < 120; ++i) x[i] = i;
  const QfCopy args = {x.data(), y.data(), {3, 2, 5, 4}, {20, 60, 1, 5}, {40, 20, 4, 1}, QF_I32, QF_I32};
  CHECK_EQ(cpu::copy(0, &args), QF_OK);
  int at = 0;
  for (int b = 0; b < 3; ++b) {
    for (int a = 0; a < 2; ++a) {
      for (int d = 0; d < 5; ++d) {
        for (int c = 0; c < 4; ++c) CHECK_EQ(y[at++], ((a * shape[1] + b) * shape[2] + c) * shape[3] + d);
      }
    }
  }
  const uint8_t byte[] = {9, 8};
  uint8_t repeated[6];
  const QfCopy spread = {byte, repeated, {1, 1, 3, 2}, {0, 0, 0, 1}, {0, 0, 2, 1}, QF_U8, QF_U8};
  CHECK_EQ(cpu::copy(0, &spread), QF_OK);
  for (int i = 0; i < 6; ++i) CHECK_EQ(repeated[i], byte[i % 2]);
}

TEST("copying integers to floats is refused and empty shapes are not") {
  int32_t x = 1;
  float y = 2;
  const QfCopy refused = {&x, &y, {1, 1, 1, 1}, {0, 0, 0, 1}, {0, 0, 0, 1}, QF_I32, QF_F32};
  CHECK_EQ(cpu::copy(0, &refused), QF_UNSUPPORTED);
  const QfCopy empty = {nullptr, nullptr, {1, 3, 0, 5}, {0, 0, 5, 1}, {0, 0, 5, 1}, QF_F32, QF_F16};
  CHECK_EQ(cpu::copy(0, &empty), QF_OK);
}
