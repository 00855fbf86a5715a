// LoRA with an adapter per row on the emulated GPU: against double, row by row, and in a captured graph.
#include <tuple>

#include "device_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

struct Types {
  int32_t x, w;
};
constexpr Types kTypes[] = {
    {QF_F32, QF_F32}, {QF_F32, QF_F16}, {QF_F32, QF_BF16}, {QF_F16, QF_F16}, {QF_BF16, QF_BF16}};

struct Shape {
  int64_t n, k, slots, rank;
  int64_t pad_x = 0, pad_y = 0;
  size_t offset = 0;  // elements
};

// Rows, adapters' weights and what y held before.
struct Problem {
  Problem(const Shape& s, Types types, int64_t m)
      : shape(s),
        types(types),
        m(m),
        x(rounded(Random(1).floats(m * s.k), types.x)),
        y(rounded(Random(2).floats(m * s.n), types.x)),
        a(rounded(Random(3).floats(s.slots * s.rank * s.k, 0.3f), types.w)),
        b(rounded(Random(4).floats(s.slots * s.n * s.rank, 0.3f), types.w)),
        scaling(Random(5).floats(s.slots, 2.0f)) {}

  const Shape shape;
  const Types types;
  const int64_t m;
  const std::vector<float> x, y, a, b, scaling;
};

// The operands on the device, for rows [from, from + count) of a problem.
class OnDevice {
 public:
  OnDevice(const Problem& p, const std::vector<int32_t>& adapters, int64_t from, int64_t count)
      : shape_(p.shape),
        ids(adapters),
        x_(strided(part(p.x, from, count, p.shape.k), count, p.shape.k, p.shape.k + p.shape.pad_x), p.types.x,
           p.shape.offset),
        y_(strided(part(p.y, from, count, p.shape.n), count, p.shape.n, p.shape.n + p.shape.pad_y), p.types.x,
           p.shape.offset),
        a_(p.a, p.types.w, p.shape.offset),
        b_(p.b, p.types.w, p.shape.offset),
        scaling_(p.scaling, QF_F32),
        count_(count) {
    args = {x_.data(),
            a_.data(),
            b_.data(),
            scaling_.floats(),
            ids.data(),
            y_.data(),
            count,
            p.shape.n,
            p.shape.k,
            p.shape.slots,
            p.shape.rank,
            p.shape.k + p.shape.pad_x,
            p.shape.n + p.shape.pad_y,
            p.types.x,
            p.types.w};
  }

  std::vector<float> read() const {
    const std::vector<float> padded = y_.read();
    const int64_t ld = shape_.n + shape_.pad_y;
    std::vector<float> out;
    for (int64_t r = 0; r < count_; ++r) {
      const auto row = padded.begin() + r * ld;
      out.insert(out.end(), row, row + shape_.n);
      for (int64_t c = shape_.n; c < ld; ++c) CHECK(std::isnan(row[c]));
    }
    return out;
  }

  QfLoraApply args;

 private:
  static std::vector<float> part(const std::vector<float>& rows, int64_t from, int64_t count, int64_t cols) {
    return {rows.begin() + from * cols, rows.begin() + (from + count) * cols};
  }
  const Shape shape_;

 public:
  const DeviceInts ids;

 private:
  const DeviceArray x_, y_, a_, b_, scaling_;
  const int64_t count_;
};

std::vector<float> apply(const Problem& p, const std::vector<int32_t>& adapters, int64_t from, int64_t count) {
  const std::vector<int32_t> ids(adapters.begin() + from, adapters.begin() + from + count);
  const OnDevice on_device(p, ids, from, count);
  if (backend().lora_apply(0, &on_device.args) != QF_OK) fail(__FILE__, __LINE__, backend().last_error());
  return on_device.read();
}

// Errors: k and rank roundings of the two f32 sums, then one to the dtype of y.
void check_against_double(const Problem& p, const std::vector<int32_t>& adapters, const std::vector<float>& actual,
                          const std::string& what) {
  const auto [n, k, slots, rank] = std::tie(p.shape.n, p.shape.k, p.shape.slots, p.shape.rank);
  std::vector<double> expected, tolerance;
  for (int64_t r = 0; r < p.m; ++r) {
    const int64_t s = adapters[static_cast<size_t>(r)];
    std::vector<double> low(static_cast<size_t>(rank)), low_error(static_cast<size_t>(rank));
    for (int64_t q = 0; q < rank && s >= 0; ++q) {
      double magnitude = 0;
      for (int64_t c = 0; c < k; ++c) {
        const double term =
            double(p.a[static_cast<size_t>((s * rank + q) * k + c)]) * p.x[static_cast<size_t>(r * k + c)];
        low[static_cast<size_t>(q)] += term;
        magnitude += std::abs(term);
      }
      low_error[static_cast<size_t>(q)] = double(k) * 0x1p-24 * magnitude;
    }
    for (int64_t j = 0; j < n; ++j) {
      double value = p.y[static_cast<size_t>(r * n + j)], error = 0;
      if (s >= 0) {
        const double scaling = p.scaling[static_cast<size_t>(s)];
        double sum = 0, magnitude = 0;
        for (int64_t q = 0; q < rank; ++q) {
          const double factor = p.b[static_cast<size_t>((s * n + j) * rank + q)];
          sum += factor * low[static_cast<size_t>(q)];
          magnitude += std::abs(factor * low[static_cast<size_t>(q)]);
          error += std::abs(factor * low_error[static_cast<size_t>(q)]);
        }
        error = std::abs(scaling) * (error + double(rank) * 0x1p-24 * magnitude);
        value += scaling * sum;
        error += roundoff(p.types.x) * (std::abs(value) + error) + 0x1p-25;
      }
      expected.push_back(value);
      tolerance.push_back(error);
    }
  }
  check_close(actual, expected, tolerance, what);
}

std::vector<int32_t> mixed(int64_t m, int32_t slots) {
  std::vector<int32_t> adapters;
  for (int64_t r = 0; r < m; ++r) adapters.push_back(static_cast<int32_t>((r * 5 / 3) % (slots + 1)) - 1);
  return adapters;
}

}  // namespace

TEST("each row gets its own adapter, in every dtype, rank and stride") {
  constexpr Shape kShapes[] = {{33, 77, 3, 5},        {40, 128, 2, 16},         {300, 64, 2, 8},
                               {24, 2100, 2, 4},      {17, 80, 3, 67},          {1, 1, 1, 1},
                               {24, 40, 2, 16, 3, 5}, {24, 40, 2, 16, 8, 8, 8}, {24, 40, 2, 8, 0, 0, 1}};
  for (const Types types : kTypes) {
    for (const Shape& shape : kShapes) {
      const Problem p(shape, types, 9);
      const std::vector<int32_t> adapters = mixed(9, static_cast<int32_t>(shape.slots));
      check_against_double(p, adapters, apply(p, adapters, 0, 9),
                           std::string(qf_dtype_name(types.x)) + " · " + qf_dtype_name(types.w) + " rank " +
                               std::to_string(shape.rank) + " k " + std::to_string(shape.k));
    }
  }
}

TEST("many rows share the reads of an adapter and keep the bits they have alone") {
  for (const Types types : kTypes) {
    constexpr int64_t kRows = 67;
    const Problem p({24, 72, 3, 6}, types, kRows);
    std::vector<int32_t> runs = mixed(kRows, 3);
    for (size_t r = 10; r < 40; ++r) runs[r] = 1;
    const std::vector<float> all = apply(p, runs, 0, kRows);
    check_against_double(p, runs, all, "67 rows");
    for (const auto& [from, count] : {std::pair<int64_t, int64_t>{0, 1}, {9, 3}, {12, 20}, {66, 1}, {1, 66}}) {
      const std::vector<float> alone = apply(p, runs, from, count);
      CHECK(std::equal(alone.begin(), alone.end(), all.begin() + from * 24));
    }
  }
}

TEST("a captured step follows the adapters that stand on the device") {
  constexpr int64_t kRows = 5;
  const Problem p({24, 72, 3, 6}, {QF_F16, QF_F16}, kRows);
  const OnDevice step(p, mixed(kRows, 3), 0, kRows);
  const auto before = encoded(p.y, QF_F16);
  CHECK_EQ(backend().lora_apply(0, &step.args), QF_OK);  // loads the kernels
  CHECK_EQ(backend().capture_begin(0), QF_OK);
  CHECK_EQ(backend().lora_apply(0, &step.args), QF_OK);
  void* graph = nullptr;
  CHECK_EQ(backend().capture_end(0, &graph), QF_OK);
  for (const std::vector<int32_t>& adapters :
       {std::vector<int32_t>{2, 2, -1, 0, 1}, {-1, -1, -1, -1, -1}, {1, 1, 1, 1, 1}}) {
    CHECK_EQ(backend().upload(0, step.args.y, before.data(), before.size()), QF_OK);
    CHECK_EQ(backend().upload(0, step.ids.data(), adapters.data(), adapters.size() * sizeof(int32_t)), QF_OK);
    CHECK_EQ(backend().graph_launch(0, graph), QF_OK);
    check_against_double(p, adapters, step.read(), "replayed");
  }
  backend().graph_free(0, graph);
}

TEST("an adapter outside the table is a fault of its row alone") {
  for (const int64_t rows : {6, 70}) {
    const Problem p({24, 72, 3, 6}, {QF_F32, QF_F32}, rows);
    std::vector<int32_t> adapters = mixed(rows, 3);
    adapters[4] = 3;
    const OnDevice step(p, adapters, 0, rows);
    CHECK_EQ(backend().lora_apply(0, &step.args), QF_OK);
    CHECK_EQ(backend().synchronize(0), QF_INVALID_ARGUMENT);
    adapters[4] = -1;
    check_against_double(p, adapters, step.read(), "beside a bad row");
  }
}

TEST("no rows, no columns, no k and no rank are no error") {
  for (const Shape& shape : {Shape{0, 8, 1, 4}, Shape{8, 0, 1, 4}, Shape{8, 8, 1, 0}}) {
    const Problem p(shape, {QF_BF16, QF_BF16}, 2);
    CHECK(apply(p, {0, 0}, 0, 2) == p.y);
  }
  const Problem none({8, 8, 1, 4}, {QF_F16, QF_F16}, 0);
  CHECK(apply(none, {}, 0, 0).empty());
}
