// Products of bf16 weights, which a matrix unit forms where there is one: edges, special values, and one order of sums.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "linear_problem.h"

using namespace qformer;
using namespace qformer::linear_test;

TEST("bf16 products pass NaN and infinity on to the outputs of their own row and column only") {
  on_every_level([] {
    for (int64_t m : {1, 4, 21, 70}) {
      Problem problem({.m = m, .n = 75, .k = 70, .dtype = QF_BF16, .math = QF_MATH_BF16});
      problem.x[69] = NAN;
      problem.w.bits[static_cast<size_t>(2 * 70 + 68 + 1)] = bf16_bits(INFINITY);
      problem.run();
      for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < 75; j++) {
          const float y = problem.y[static_cast<size_t>(i * 75 + j)];
          CHECK(i == 0 ? std::isnan(y) : j == 2 ? !std::isfinite(y) : std::isfinite(y));
        }
      }
    }
  });
}

TEST("linear reads nothing past the last weight, which may end a mapping") {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  on_every_level([page] {
    for (int32_t math : {QF_MATH_F32, QF_MATH_BF16}) {
      for (int64_t n : {64, 77}) {
        for (int64_t m : {1, 3, 20, 40}) {
          const int64_t k = 331;
          Problem problem({.m = m, .n = n, .k = k, .dtype = QF_BF16, .math = math});
          const size_t bytes = static_cast<size_t>(n * k) * 2, size = (bytes + page - 1) / page * page;
          void* map = mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
          CHECK(map != MAP_FAILED);
          CHECK_EQ(mprotect(static_cast<char*>(map) + size, page, PROT_NONE), 0);
          char* w = static_cast<char*>(map) + size - bytes;
          std::memcpy(w, problem.w.data(), bytes);
          std::vector<float> y(problem.y.size());
          QfLinear args{};
          args.x = problem.x.data();
          args.w = w;
          args.y = y.data();
          args.m = m, args.n = args.ldy = n, args.k = args.ldx = args.ldw = k;
          args.dtype = args.y_dtype = QF_F32;
          args.w_dtype = QF_BF16;
          args.math = math;
          CHECK_EQ(cpu::cpu_backend()->linear(0, &args), QF_OK);
          CHECK(std::memcmp(y.data(), problem.run().data(), y.size() * sizeof(float)) == 0);
          munmap(map, size + page);
        }
      }
    }
  });
}

TEST("bf16 products have the same bits at any m past blocks of rows and columns, gated or not") {
  on_every_level([] {
    for (int64_t n : {256, 300}) {
      const Case shape{.m = 600, .n = n, .k = 1100, .dtype = QF_BF16, .activation = QF_ACT_SILU, .math = QF_MATH_BF16};
      Problem all(shape);
      all.run();
      for (int64_t m : {1, 2, 3, 5, 16, 17, 32, 33, 100}) {
        Problem some(shape);
        some.run(m);
        CHECK(std::memcmp(some.y.data(), all.y.data(), static_cast<size_t>(m * n) * sizeof(float)) == 0);
        std::vector<float> gated(static_cast<size_t>(m * n));
        const QfGatedLinear args{
            some.x.data(), some.w.data(), some.w.data(), nullptr,     gated.data(), m, n, 1100, 1100, 1100, n, 0,
            QF_F32,        QF_BF16,       QF_ACT_NONE,   QF_MATH_BF16};
        CHECK_EQ(cpu::cpu_backend()->gated_linear(0, &args), QF_OK);
        some.shape.activation = QF_ACT_NONE;
        some.run(m);
        for (size_t i = 0; i < gated.size(); i++) CHECK_EQ(gated[i], some.y[i] * some.y[i]);
      }
    }
  });
}

TEST("bf16 products have the same bits wherever the weights lie, at any m, past blocks of k") {
  on_every_level([] {
    for (int64_t k : {1056, 2048, 3104}) {
      const int64_t m = 257, n = 96;
      Problem odd({.m = m, .n = n, .k = k, .dtype = QF_BF16, .activation = QF_ACT_RELU, .math = QF_MATH_BF16});
      odd.run();
      const size_t bytes = static_cast<size_t>(n * k) * 2;
      void* w = std::aligned_alloc(64, bytes);
      std::memcpy(w, odd.w.data(), bytes);
      for (int64_t rows : {1, 40, 48, 80, 257}) {
        std::vector<float> y(static_cast<size_t>(rows * n));
        QfLinear args{};
        args.x = odd.x.data();
        args.w = w;
        args.y = y.data();
        args.m = rows, args.n = args.ldy = n, args.k = args.ldx = args.ldw = k;
        args.dtype = args.y_dtype = QF_F32;
        args.w_dtype = QF_BF16;
        args.activation = QF_ACT_RELU;
        args.math = QF_MATH_BF16;
        CHECK_EQ(cpu::cpu_backend()->linear(0, &args), QF_OK);
        CHECK(std::memcmp(y.data(), odd.y.data(), y.size() * sizeof(float)) == 0);
      }
      std::free(w);
    }
  });
}
