// The GEMM kernels one by one: every tile on odd shapes, the bits that all of them must share, the split over k, bank
// conflicts, and the host's choice among them.
#include "emulator/launch.h"
#include "gemm_case.h"
#include "gemm_plan.h"

using namespace qformer;
using namespace qformer::test;
using cuda::GemmArgs;
using cuda::GemmKernel;
using cuda::GemmPlan;

namespace {

constexpr GemmKernel kKernels[] = {GemmKernel::kLarge, GemmKernel::kMedium, GemmKernel::kSerial,
                                   GemmKernel::kTall,  GemmKernel::kSmall,  GemmKernel::kUnaligned};
constexpr cuda::GemmDevice kA100{108, 163 * 1024}, kH100{132, 227 * 1024}, kRtx4090{128, 99 * 1024}, kT4{40, 64 * 1024};

cuda::DeviceContext& context() {
  cuda::DeviceContext* here = nullptr;
  CHECK_EQ(cuda::enter(0, &here), QF_OK);
  return *here;
}

GemmArgs product(const Matrix& x, const Matrix& w, const Matrix& y) {
  GemmArgs args{};
  args.x = x.data();
  args.w = w.data();
  args.y = y.data();
  args.ldx = x.ld;
  args.ldw = w.ld;
  args.ldy = y.ld;
  args.m = static_cast<int32_t>(x.rows);
  args.n = static_cast<int32_t>(w.rows);
  args.k = static_cast<int32_t>(x.columns);
  args.y_f32 = y.dtype == QF_F32;
  return args;
}

// Runs one kernel whatever the host would choose; false where it does not serve the product.
bool run_with(GemmKernel kernel, GemmArgs args, int32_t dtype) {
  GemmPlan plan;
  if (!cuda::plan_kernel(kA100, args, kernel, &plan)) return false;
  cuda::DeviceContext& here = context();
  args.tiles_m = plan.tiles_m;
  args.tiles_n = plan.tiles_n;
  args.k_chunk = plan.k_chunk;
  args.stages = plan.stages;
  if (plan.chunks > 1) {
    void* partials = nullptr;
    int32_t* tickets = nullptr;
    CHECK_EQ(here.scratch(plan.partials_bytes, &partials), QF_OK);
    CHECK_EQ(here.counters(static_cast<size_t>(plan.tiles_m * plan.tiles_n), &tickets), QF_OK);
    args.partials = static_cast<float*>(partials);
    args.tickets = reinterpret_cast<uint32_t*>(tickets);
  }
  const auto launch = dtype == QF_F16 ? cuda::launch_gemm_f16 : cuda::launch_gemm_bf16;
  CHECK_EQ(launch(here, "gemm", args, plan), QF_OK);
  const QfStatus status = table().synchronize(0);
  if (status != QF_OK) fail(__FILE__, __LINE__, table().last_error());
  return status == QF_OK;
}

void check_product(const Matrix& x, const Matrix& w, const Matrix& y, const std::string& what) {
  for (int64_t i = 0; i < y.rows; ++i)
    for (int64_t j = 0; j < y.columns; ++j)
      if (!check_element(y, i, j, dot_of(x, i, w, j), what)) return;
}

}  // namespace

TEST("every tile multiplies odd shapes, and all of them give the same bits") {
  Random random(1);
  for (const int32_t dtype : {QF_F16, QF_BF16}) {
    // One chunk of k, then two.
    for (const int64_t k : {136, 1408}) {
      Matrix x(dtype, 133, k, 8), w(dtype, 75, k, 16);
      x.fill(random, 1.0f);
      w.fill(random, 1.0f);
      Matrix first(QF_F32, 133, 75, 1), other(QF_F32, 133, 75, 1);
      CHECK(run_with(GemmKernel::kTall, product(x, w, first), dtype));
      first.download();
      check_product(x, w, first, "tall");
      int served = 0;
      for (const GemmKernel kernel : kKernels) {
        if (!run_with(kernel, product(x, w, other), dtype)) continue;
        ++served;
        other.download();
        CHECK(same_rows(first, other, 133));
        CHECK(other.padding_untouched());
      }
      CHECK_EQ(served, k == 136 ? 4 : 3);  // tall, small and large, medium or, with chunks to add up, serial
    }
  }
}

TEST("unaligned operands give the bits of aligned ones") {
  Random random(2);
  for (const int64_t k : {72, 1408}) {
    Matrix x(QF_F16, 70, k), w(QF_F16, 40, k), y(QF_F32, 70, 40), other(QF_F32, 70, 40);
    x.fill(random, 1.0f);
    w.fill(random, 1.0f);
    CHECK(run_with(GemmKernel::kSmall, product(x, w, y), QF_F16));
    y.download();
    // Odd stride and odd base, of x, of w, of both.
    for (int which = 1; which < 4; ++which) {
      Matrix odd_x(QF_F16, 70, k, 3 * (which & 1), which & 1), odd_w(QF_F16, 40, k, 5 * (which >> 1), which >> 1);
      odd_x.copy_rows(x);
      odd_w.copy_rows(w);
      CHECK(!run_with(GemmKernel::kSmall, product(odd_x, odd_w, other), QF_F16));
      CHECK(run_with(GemmKernel::kUnaligned, product(odd_x, odd_w, other), QF_F16));
      other.download();
      CHECK(same_rows(y, other, 70));
    }
  }
}

TEST("a column count that is no multiple of 8 is summed to its end and not beyond") {
  Random random(3);
  for (const int64_t k : {1, 7, 63, 65, 139}) {
    // The padding holds NaN, so one column too many would show.
    Matrix x(QF_BF16, 17, k, 5), w(QF_BF16, 19, k, 1), y(QF_F32, 17, 19);
    x.fill(random, 1.0f);
    w.fill(random, 1.0f);
    CHECK(run_with(GemmKernel::kUnaligned, product(x, w, y), QF_BF16));
    y.download();
    check_product(x, w, y, "k tail");
  }
}

TEST("a row's bits do not depend on the other rows") {
  Random random(4);
  for (const int64_t k : {96, 1408}) {
    Matrix x(QF_F16, 257, k), w(QF_F16, 72, k), y(QF_F32, 257, 72);
    x.fill(random, 1.0f);
    w.fill(random, 1.0f);
    for (const GemmKernel kernel : kKernels) {
      if (!run_with(kernel, product(x, w, y), QF_F16)) continue;
      y.download();
      for (const int64_t m : {17, 64}) {
        Matrix few(QF_F16, m, k), y_few(QF_F32, m, 72);
        few.copy_rows(x);
        CHECK(run_with(GemmKernel::kSmall, product(few, w, y_few), QF_F16));
        y_few.download();
        CHECK(same_rows(y_few, y, m));
      }
    }
  }
}

TEST("the chunks of k add up to the same bits in whatever order their blocks arrive") {
  Random random(5);
  Matrix x(QF_F16, 65, 3072), w(QF_F16, 65, 3072), y(QF_F32, 65, 65), other(QF_F32, 65, 65);
  x.fill(random, 1.0f);
  w.fill(random, 1.0f);
  CHECK(run_with(GemmKernel::kSerial, product(x, w, y), QF_F16));
  y.download();
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    emulator::set_seed(seed);
    CHECK(run_with(GemmKernel::kSmall, product(x, w, other), QF_F16));  // tickets are zero again each time
    other.download();
    CHECK(same_rows(y, other, 65));
  }
  emulator::set_seed(1);
}

TEST("no shared memory access of any tile conflicts") {
  Random random(6);
  Matrix x(QF_F16, 256, 256), w(QF_F16, 256, 256), up(QF_F16, 256, 256), y(QF_F16, 256, 256);
  x.fill(random, 1.0f);
  w.fill(random, 1.0f);
  up.fill(random, 1.0f);
  emulator::count_bank_conflicts(true);
  for (const GemmKernel kernel : kKernels) {
    for (const bool gated : {false, true}) {
      GemmArgs args = product(x, w, y);
      args.w_up = gated ? up.data() : nullptr;
      const emulator::Counters before = emulator::counters();
      if (!run_with(kernel, args, QF_F16)) continue;
      CHECK(emulator::counters().shared_wavefronts > before.shared_wavefronts);
      CHECK_EQ(emulator::counters().bank_conflicts - before.bank_conflicts, uint64_t{0});
    }
  }
  emulator::count_bank_conflicts(false);
}

TEST("the split over k depends on the weights alone") {
  CHECK_EQ(cuda::gemm_k_chunk(1408, 6144), 1536);
  CHECK_EQ(cuda::gemm_k_chunk(1408, 1408), 704);
  CHECK_EQ(cuda::gemm_k_chunk(4224, 1408), 1408);
  CHECK_EQ(cuda::gemm_k_chunk(6144, 1408), 1408);
  CHECK_EQ(cuda::gemm_k_chunk(768, 3072), 768);
  CHECK_EQ(cuda::gemm_k_chunk(768, 768), 768);
  CHECK_EQ(cuda::gemm_k_chunk(4096, 11008), 5504);
  CHECK_EQ(cuda::gemm_k_chunk(11008, 4096), 4096);
  CHECK_EQ(cuda::gemm_k_chunk(32000, 4096), 4096);
  CHECK_EQ(cuda::gemm_k_chunk(8, 0), 64);
}

TEST("the host takes small tiles and split k for one image, large tiles for many") {
  GemmArgs args{};
  args.ldx = args.ldw = args.k = 6144;
  args.n = 1408;
  args.m = 257;
  for (const cuda::GemmDevice& device : {kA100, kH100, kRtx4090}) {
    const GemmPlan one = cuda::plan_gemm(device, args);
    CHECK(one.kernel == GemmKernel::kSmall || one.kernel == GemmKernel::kTall);
    CHECK_EQ(one.chunks, 4);
    CHECK(one.tiles_m * one.tiles_n * one.chunks >= 2 * device.multiprocessors);
  }
  args.m = 257 * 32;
  CHECK(cuda::plan_gemm(kH100, args).kernel == GemmKernel::kSerial);
  args.n = 6144;
  args.ldx = args.ldw = args.k = 1408;
  CHECK(cuda::plan_gemm(kA100, args).kernel == GemmKernel::kLarge);
  CHECK(cuda::plan_gemm(kH100, args).kernel == GemmKernel::kLarge);
  CHECK(cuda::plan_gemm(kT4, args).kernel != GemmKernel::kLarge);  // 96 KB of stages
}

TEST("the rows after those of the decode kernels take the small tile, whose weights are read once") {
  for (const cuda::GemmDevice& device : {kA100, kH100, kRtx4090}) {
    for (const int32_t m : {33, 64}) {
      for (const int32_t n : {768, 4096, 11008, 32000}) {
        GemmArgs args{};
        args.m = m;
        args.n = n;
        args.ldx = args.ldw = args.k = 4096;
        const GemmPlan plan = cuda::plan_gemm(device, args);
        CHECK(plan.kernel == GemmKernel::kSmall);
        CHECK_EQ(plan.tiles_m, 1);
        CHECK(plan.stages >= 3);
      }
    }
  }
}

TEST("every plan fits the shared memory of its device") {
  for (const cuda::GemmDevice& device : {kA100, kH100, kRtx4090, kT4}) {
    for (const int32_t m : {1, 17, 128, 257, 2056, 8224}) {
      for (const int32_t n : {1, 72, 768, 1408, 4096, 11008}) {
        GemmArgs args{};
        args.m = m;
        args.n = n;
        args.ldx = args.ldw = args.k = 4096;
        const GemmPlan plan = cuda::plan_gemm(device, args);
        CHECK(plan.stages >= 2 && plan.stages <= 4);
        CHECK(plan.shared_bytes <= device.shared_limit);
        CHECK(plan.chunks == 1 || plan.tiles_m * plan.tiles_n <= 4096);
      }
    }
  }
}
