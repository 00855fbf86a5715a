// Gather and scatter of rows on the emulated GPU.
#include <string>

#include "device_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

constexpr int32_t kDtypes[] = {QF_F32, QF_F16, QF_BF16};

struct GatherCase {
  int64_t rows, cols, ld;
  int32_t dtype, out_dtype;
};

std::vector<float> gather(const GatherCase& c, const std::vector<float>& table, const std::vector<int32_t>& ids,
                          bool synchronize = true) {
  const DeviceArray source(strided(table, c.rows, c.cols, c.ld), c.dtype);
  const DeviceInts tokens(ids);
  const auto count = static_cast<int64_t>(ids.size());
  const DeviceArray y(std::vector<float>(static_cast<size_t>(count * c.cols), NAN), c.out_dtype);
  const QfGatherRows args = {source.data(), tokens.data(), y.data(), c.rows, c.cols, count, c.ld, c.dtype, c.out_dtype};
  CHECK_EQ(backend().gather_rows(0, &args), QF_OK);
  if (!synchronize) {
    // the fault of the bad id, once
    CHECK_EQ(backend().synchronize(0), QF_INVALID_ARGUMENT);
    CHECK(std::string(backend().last_error()).find("gatherRows") != std::string::npos ||
          std::string(backend().last_error()).find("gather_rows") != std::string::npos);
  }
  return y.read();
}

void check_gather(const GatherCase& c) {
  const auto table = rounded(Random(1).floats(c.rows * c.cols), c.dtype);
  const std::vector<int32_t> ids = {0, static_cast<int32_t>(c.rows - 1), 2, 2, 1};
  const auto y = gather(c, table, ids);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (int64_t i = 0; i < c.cols; ++i) {
      const float expected = rounded(table[static_cast<size_t>(ids[t] * c.cols + i)], c.out_dtype);
      CHECK_EQ(y[t * static_cast<size_t>(c.cols) + static_cast<size_t>(i)], expected);
    }
  }
}

}  // namespace

TEST("gather picks rows of every dtype into every dtype") {
  for (const int32_t dtype : kDtypes) {
    for (const int32_t out_dtype : kDtypes) {
      for (const int64_t cols : {1, 7, 257, 768}) check_gather({6, cols, cols, dtype, out_dtype});
      check_gather({6, 1408, 1416, dtype, out_dtype});
      check_gather({6, 3000, 3001, dtype, out_dtype});
    }
  }
}

TEST("a bad id is reported, its row is zeros, and the others are right") {
  const GatherCase c = {4, 40, 40, QF_F16, QF_F32};
  const auto table = rounded(Random(2).floats(160), QF_F16);
  const auto y = gather(c, table, {3, 4, -1, 1}, false);
  for (size_t i = 0; i < 40; ++i) {
    CHECK_EQ(y[i], table[120 + i]);
    CHECK_EQ(y[40 + i], 0.0f);
    CHECK_EQ(y[80 + i], 0.0f);
    CHECK_EQ(y[120 + i], table[40 + i]);
  }
}

TEST("scatter writes the rows named and leaves the others") {
  for (const int32_t dtype : kDtypes) {
    for (const int64_t cols : {1, 7, 257, 768}) {
      const int64_t ldd = cols + 5, lds = cols == 768 ? 776 : cols + 2;
      const auto before = rounded(Random(3).floats(5 * cols), dtype), rows = rounded(Random(4).floats(3 * cols), dtype);
      const DeviceArray dst(strided(before, 5, cols, ldd), dtype), src(strided(rows, 3, cols, lds), dtype);
      const DeviceInts ids({4, 0, 2});
      const QfScatterRows args = {dst.data(), ids.data(), src.data(), 5, cols, 3, ldd, lds, dtype};
      CHECK_EQ(backend().scatter_rows(0, &args), QF_OK);
      const auto after = dst.read();
      const int64_t source_of[] = {1, -1, 2, -1, 0};
      for (int64_t row = 0; row < 5; ++row) {
        for (int64_t i = 0; i < cols; ++i) {
          const float expected = source_of[row] < 0 ? before[static_cast<size_t>(row * cols + i)]
                                                    : rows[static_cast<size_t>(source_of[row] * cols + i)];
          CHECK_EQ(after[static_cast<size_t>(row * ldd + i)], expected);
        }
        for (int64_t i = cols; i < ldd; ++i) CHECK(std::isnan(after[static_cast<size_t>(row * ldd + i)]));
      }
    }
  }
}

TEST("a scatter to a bad id writes nowhere and is reported") {
  const DeviceArray dst(std::vector<float>(12, 1.0f), QF_F32), src(std::vector<float>(6, 2.0f), QF_F32);
  const DeviceInts ids({4, 1});
  const QfScatterRows args = {dst.data(), ids.data(), src.data(), 4, 3, 2, 3, 3, QF_F32};
  CHECK_EQ(backend().scatter_rows(0, &args), QF_OK);
  CHECK_EQ(backend().synchronize(0), QF_INVALID_ARGUMENT);
  CHECK(dst.read() == std::vector<float>({1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1}));
}

TEST("no tokens and no columns are harmless") {
  const QfGatherRows none = {nullptr, nullptr, nullptr, 4, 8, 0, 8, QF_F32, QF_F16};
  CHECK_EQ(backend().gather_rows(0, &none), QF_OK);
  const QfScatterRows thin = {nullptr, nullptr, nullptr, 4, 0, 3, 0, 0, QF_F32};
  CHECK_EQ(backend().scatter_rows(0, &thin), QF_OK);
}
