// Rows by id: what is moved where, and that a bad id is named and leaves the output alone.
#include <cstring>

#include "cpu/error.h"
#include "cpu/families.h"
#include "random_data.h"
#include "test.h"

using namespace qformer;
using qformer::test::Random;

TEST("gathering copies rows of a strided table in the order of the ids") {
  const auto table = Random(1).floats(5 * 9);
  const int32_t ids[] = {4, 0, 4};
  std::vector<float> y(3 * 7);
  const QfGatherRows args = {table.data(), ids, y.data(), 5, 7, 3, 9, QF_F32, QF_F32};
  CHECK_EQ(cpu::gather_rows(0, &args), QF_OK);
  for (int t = 0; t < 3; ++t) CHECK(std::memcmp(&y[t * 7], &table[ids[t] * 9], 7 * sizeof(float)) == 0);
}

TEST("gathering widens bf16 and f16 rows exactly") {
  const uint16_t bf16[] = {0x3f80, 0xc000, 0x0001, 0x7f80, 0x4049}, f16[] = {0x3c00, 0xc000, 0x0001, 0x7c00, 0x4248};
  const float from_bf16[] = {1, -2, 0x1p-133f, INFINITY, 3.140625f},
              from_f16[] = {1, -2, 0x1p-24f, INFINITY, 3.140625f};
  const int32_t ids[] = {0};
  std::vector<float> y(5);
  const QfGatherRows first = {bf16, ids, y.data(), 1, 5, 1, 5, QF_BF16, QF_F32};
  CHECK_EQ(cpu::gather_rows(0, &first), QF_OK);
  for (int i = 0; i < 5; ++i) CHECK_EQ(y[i], from_bf16[i]);
  const QfGatherRows second = {f16, ids, y.data(), 1, 5, 1, 5, QF_F16, QF_F32};
  CHECK_EQ(cpu::gather_rows(0, &second), QF_OK);
  for (int i = 0; i < 5; ++i) CHECK_EQ(y[i], from_f16[i]);
}

TEST("an id outside the table is refused by name before anything is written") {
  const auto table = Random(1).floats(5 * 2);
  for (const int32_t bad : {5, -1, INT32_MIN}) {
    const int32_t ids[] = {1, bad};
    std::vector<float> y(4, 42.0f);
    const QfGatherRows gather = {table.data(), ids, y.data(), 5, 2, 2, 2, QF_F32, QF_F32};
    CHECK_EQ(cpu::gather_rows(0, &gather), QF_INVALID_ARGUMENT);
    CHECK(std::strstr(cpu::last_error(), ("id " + std::to_string(bad) + " ").c_str()) != nullptr);
    const QfScatterRows scatter = {y.data(), ids, table.data(), 2, 2, 2, 2, 2, QF_F32};
    CHECK_EQ(cpu::scatter_rows(0, &scatter), QF_INVALID_ARGUMENT);
    CHECK(y == std::vector<float>(4, 42.0f));
  }
}

TEST("scattering writes strided rows to their ids and leaves the others") {
  const auto src = Random(2).floats(2 * 4);
  std::vector<float> dst(3 * 5, -1.0f);
  const int32_t ids[] = {2, 0};
  const QfScatterRows args = {dst.data(), ids, src.data(), 3, 3, 2, 5, 4, QF_F32};
  CHECK_EQ(cpu::scatter_rows(0, &args), QF_OK);
  for (int i = 0; i < 5; ++i) {
    CHECK_EQ(dst[10 + i], i < 3 ? src[i] : -1.0f);
    CHECK_EQ(dst[5 + i], -1.0f);
    CHECK_EQ(dst[i], i < 3 ? src[4 + i] : -1.0f);
  }
}

TEST("gathering no tokens does nothing") {
  const QfGatherRows args = {nullptr, nullptr, nullptr, 5, 7, 0, 7, QF_F32, QF_F32};
  CHECK_EQ(cpu::gather_rows(0, &args), QF_OK);
}
