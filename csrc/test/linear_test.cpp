// The CPU backend's linear family against a double-precision reference, on every instruction set the machine has.
#include <algorithm>

#include "linear_problem.h"

using namespace qformer;
using namespace qformer::linear_test;

namespace {

void check_types(Case shape) {
  for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
    for (int32_t math : {QF_MATH_F32, QF_MATH_BF16}) {
      shape.dtype = dtype;
      shape.math = math;
      Problem(shape).check();
    }
  }
}

}  // namespace

TEST("linear equals the exact result at odd sizes, for every weight type and instruction set") {
  on_every_level([] {
    for (int64_t k : {1, 7, 16, 33, 88, 1408}) {
      for (int64_t m : {1, 2, 7, 17, 33}) check_types({.m = m, .n = 17, .k = k, .bias = true});
    }
    for (int64_t n : {1, 7, 33, 65, 127, 257}) {
      for (int64_t m : {1, 5, 65}) check_types({.m = m, .n = n, .k = 40, .bias = true});
    }
    check_types({.m = 257, .n = 65, .k = 88});
    check_types({.m = 300, .n = 13, .k = 2500});
    check_types({.m = 130, .n = 70, .k = 1472, .pad = 5});
  });
}

TEST("linear keeps row strides and writes nothing between rows") {
  on_every_level([] {
    for (int64_t m : {3, 40}) check_types({.m = m, .n = 19, .k = 35, .bias = true, .residual = true, .pad = 5});
  });
}

TEST("linear adds a residual that lies in y itself") {
  on_every_level([] {
    for (int64_t m : {1, 9, 50}) check_types({.m = m, .n = 70, .k = 48, .residual = true, .in_place = true});
  });
}

TEST("linear applies every activation between bias and residual") {
  on_every_level([] {
    for (int32_t kind : {QF_ACT_GELU_ERF, QF_ACT_GELU_TANH, QF_ACT_RELU, QF_ACT_SILU}) {
      for (int64_t m : {2, 30})
        check_types({.m = m, .n = 37, .k = 24, .activation = kind, .bias = true, .residual = true});
    }
  });
}

TEST("linear without inputs (k = 0) gives the epilogue of zero, and m = 0 or n = 0 touches nothing") {
  Problem empty({.m = 3, .n = 5, .k = 0, .bias = true});
  empty.run();
  for (size_t i = 0; i < 15; i++) CHECK_EQ(empty.y[i], empty.bias[i % 5]);
  Problem none({.m = 4, .n = 5, .k = 6});
  for (float v : none.run(0)) CHECK_EQ(v, kUntouched);
}

TEST("a row's bits do not depend on the number of rows beside it nor on the number of threads") {
  const int32_t threads = cpu::threads();
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      for (int32_t math : {QF_MATH_F32, QF_MATH_BF16}) {
        for (int64_t k : {1500, 1504}) {  // several blocks, of whole vectors and not
          const Case shape{.m = 300, .n = 55, .k = k, .dtype = dtype, .math = math, .bias = true};
          cpu::set_threads(1);
          Problem all(shape);
          all.run();
          Problem some(shape);
          for (int32_t count : {1, 2, 5}) {
            cpu::set_threads(count);
            for (int64_t m = 1; m <= 300; m = m < 33 ? m + 1 : m + 89) {
              std::fill(some.y.begin(), some.y.end(), kUntouched);
              some.run(m);
              CHECK(std::memcmp(some.y.data(), all.y.data(), static_cast<size_t>(m * shape.n) * sizeof(float)) == 0);
            }
          }
        }
      }
    }
  });
  cpu::set_threads(threads);
}

TEST("a row's bits are the same beside many rows of a long k, with an epilogue, strides and two blocks of rows") {
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      const Case shape{.m = 530,
                       .n = 35,
                       .k = 2301,
                       .dtype = dtype,
                       .activation = QF_ACT_RELU,
                       .bias = true,
                       .residual = true,
                       .pad = 3};
      Problem all(shape);
      all.run();
      for (int64_t m : {1, 40, 128, 141}) {
        Problem some(shape);
        some.run(m);
        const size_t end = static_cast<size_t>(m * (shape.n + shape.pad));
        CHECK(std::memcmp(some.y.data(), all.y.data(), end * sizeof(float)) == 0);
        for (size_t i = end; i < some.y.size(); i++) CHECK_EQ(some.y[i], kUntouched);
      }
    }
  });
}

TEST("a row's bits are the same where weights stream from memory to few rows") {
  const int32_t threads = cpu::threads();
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      const Case shape{.m = 20, .n = 1030, .k = 520, .dtype = dtype, .math = QF_MATH_BF16, .bias = true};
      Problem all(shape);
      all.run();
      for (int32_t count : {1, 3}) {
        cpu::set_threads(count);
        for (int64_t m : {1, 2, 3}) {
          Problem some(shape);
          some.run(m);
          CHECK(std::memcmp(some.y.data(), all.y.data(), static_cast<size_t>(m * shape.n) * sizeof(float)) == 0);
        }
      }
    }
  });
  cpu::set_threads(threads);
}

TEST("f32 products have the same bits on every instruction set with fused multiply-add") {
  for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
    for (int64_t m : {1, 3, 16, 130}) {
      Problem problem({.m = m, .n = 39, .k = 1701, .dtype = dtype, .bias = true});
      std::vector<float> first;
      for (const char* level : kLevels) {
        const cpu::CpuKernels* table = cpu::find_kernels(level);
        if (table == nullptr || std::strcmp(level, "scalar") == 0) continue;
        cpu::override_kernels(table);
        const std::vector<float> y = problem.run();
        if (first.empty()) first = y;
        CHECK(std::memcmp(y.data(), first.data(), y.size() * sizeof(float)) == 0);
      }
      cpu::override_kernels(nullptr);
    }
  }
}

TEST("NaN and infinity reach the outputs of their own row only") {
  on_every_level([] {
    for (int64_t m : {4, 21, 130}) {
      Problem problem({.m = m, .n = 9, .k = 40});
      problem.x[40 + 3] = NAN;
      problem.x[2 * 40 + 5] = INFINITY;
      problem.run();
      for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < 9; j++) {
          const float y = problem.y[static_cast<size_t>(i * 9 + j)];
          CHECK(i == 1 ? std::isnan(y) : i == 2 ? !std::isfinite(y) : std::isfinite(y));
        }
      }
    }
  });
}

TEST("gated linear equals act(x wGate) * (x wUp) of the two separate products") {
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      for (int64_t m : {1, 6, 20, 70, 130}) {
        Problem gate({.m = m, .n = 53, .k = 77, .dtype = dtype, .activation = QF_ACT_SILU});
        Problem up({.m = m, .n = 53, .k = 77, .dtype = dtype});
        for (uint16_t& bits : up.w.bits) bits ^= 0x8000;
        for (float& v : up.w.values) v = -v;
        std::vector<float> y(gate.y.size());
        QfGatedLinear args{gate.x.data(), gate.w.data(), up.w.data(), nullptr,    y.data(), m, 53, 77, 77, 77, 53, 0,
                           QF_F32,        dtype,         QF_ACT_SILU, QF_MATH_F32};
        CHECK_EQ(cpu::cpu_backend()->gated_linear(0, &args), QF_OK);
        gate.run();
        up.run();
        for (size_t i = 0; i < y.size(); i++) CHECK_EQ(y[i], gate.y[i] * up.y[i]);
      }
    }
  });
}

TEST("lora merge adds the scaled product to the weights and rounds once") {
  on_every_level([] {
    for (int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      const int64_t out = 19, in = 37, rank = 5;
      Random random{7};
      Weights w(dtype, out, in, in, random);
      std::vector<float> a(static_cast<size_t>(rank * in)), b(static_cast<size_t>(out * rank));
      for (float& v : a) v = random.next();
      for (float& v : b) v = random.next();
      std::vector<float> y(static_cast<size_t>(out * in));
      QfLoraMerge args{w.data(), a.data(), b.data(), y.data(), out, in, rank, 0.5f, dtype};
      CHECK_EQ(cpu::cpu_backend()->lora_merge(0, &args), QF_OK);
      const auto* bits = reinterpret_cast<const uint16_t*>(y.data());
      for (int64_t i = 0; i < out * in; i++) {
        double expected = w.at(i / in, i % in);
        for (int64_t r = 0; r < rank; r++) {
          expected += 0.5 * a[static_cast<size_t>(r * in + i % in)] * b[static_cast<size_t>(i / in * rank + r)];
        }
        // Half a unit in the last place of bf16 and f16, and the f32 rounding of a sum below 8.
        if (dtype == QF_F32) CHECK_NEAR(y[static_cast<size_t>(i)], expected, 2e-6);
        if (dtype == QF_BF16) CHECK_NEAR(bf16_value(bits[i]), expected, std::fabs(expected) * 0x1p-8 + 1e-6);
        if (dtype == QF_F16) CHECK_NEAR(f16_value(bits[i]), expected, std::fabs(expected) * 0x1p-11 + 1e-6);
      }
    }
  });
}
