// The linear family on the oldest architecture: f16 by m16n8k8 products, without cp.async and with 64 KB of shared
// memory; bf16 is refused.
#include "emulator/launch.h"
#include "gemm_case.h"

using namespace qformer;
using namespace qformer::test;

namespace {

// Every case begins with it: the backend reads the device once, at its first call.
void begin() { emulator::set_arch(75); }

QfLinear problem(const Matrix& x, const Matrix& w, const Matrix& y) {
  return {x.data(), w.data(), nullptr, nullptr, nullptr, y.data(), x.rows,  w.rows,      x.columns,  x.ld,
          w.ld,     0,        y.ld,    0.0f,    x.dtype, w.dtype,  y.dtype, QF_ACT_NONE, QF_MATH_F32};
}

}  // namespace

TEST("linear in f16 works on sm_75") {
  begin();
  Random random(1);
  for (const int64_t k : {88, 1408}) {
    Matrix x(QF_F16, 140, k), w(QF_F16, 72, k), y(QF_F16, 140, 72);
    x.fill(random, 1.0f);
    w.fill(random, 0.5f);
    const QfLinear args = problem(x, w, y);
    CHECK_EQ(table().linear(0, &args), QF_OK);
    y.download();
    bool right = true;
    for (int64_t i = 0; right && i < y.rows; ++i)
      for (int64_t j = 0; right && j < y.columns; ++j) right = check_element(y, i, j, dot_of(x, i, w, j), "sm_75");
  }
}

TEST("rows of any number have the same bits on sm_75, normalised by the product or before it") {
  begin();
  Random random(2);
  // 4 chunks of k: as many warps as a block has, and the fewest stages for most rows.
  constexpr int64_t k = 4096;
  Matrix x(QF_F16, 40, k), w(QF_F16, 40, k), norm(QF_F32, 1, k), all(QF_F16, 40, 40);
  x.fill(random, 1.0f);
  w.fill(random, 0.1f);
  norm.fill(random, 1.0f);
  const auto run = [&](const Matrix& rows, const Matrix& y) {
    QfLinear args = problem(rows, w, y);
    args.norm_weight = norm.floats();
    args.norm_eps = 1e-5f;
    if (table().linear(0, &args) != QF_OK) fail(__FILE__, __LINE__, table().last_error());
  };
  run(x, all);
  all.download();
  for (const int64_t m : {1, 3, 4, 9, 32}) {
    Matrix some(QF_F16, m, k), y(QF_F16, m, 40);
    some.copy_rows(x);
    run(some, y);
    y.download();
    CHECK(same_rows(y, all, m));
  }
}

TEST("bf16 on sm_75 is refused with both compute capabilities") {
  begin();
  Matrix x(QF_BF16, 70, 8), w(QF_BF16, 8, 8), y(QF_BF16, 70, 8);
  const QfLinear args = problem(x, w, y);
  CHECK_EQ(table().linear(0, &args), QF_UNSUPPORTED);
  CHECK_EQ(std::string(table().last_error()),
           std::string("linear: dtype bf16 needs compute capability 8.0, this device has 7.5"));
}
