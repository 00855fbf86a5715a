// The emulator finds each kind of planted mistake in every schedule tried, and nothing in correct kernels.
#include <cmath>
#include <string>
#include <vector>

#include "emulator/launch.h"
#include "random_data.h"
#include "sample_kernels.h"
#include "test.h"

using namespace qformer;
using namespace qformer::cuda;

namespace {

constexpr uint64_t kSeeds = 20;

template <class T>
struct Buffer {
  T* data = nullptr;
  size_t count;
  explicit Buffer(size_t count) : count(count) { cudaMalloc(reinterpret_cast<void**>(&data), count * sizeof(T)); }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    cudaMemcpy(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  std::vector<T> read(cudaError_t* error = nullptr) {
    std::vector<T> values(count);
    const cudaError_t e = cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost);
    if (error) *error = e;
    return values;
  }
};

std::vector<Half> halves(uint64_t seed, int count) {
  std::vector<Half> out;
  for (float x : test::Random(seed).floats(count)) out.push_back(from_float<Half>(x));
  return out;
}

// Empty when the product is right, else the fault or "wrong result".
template <Planted kFault>
std::string run_gemm(int m, int n, int k) {
  const std::vector<Half> a = halves(1, m * k), b = halves(2, n * k);
  Buffer<Half> device_a(a), device_b(b);
  Buffer<float> device_c(static_cast<size_t>(m) * n);
  const GemmArgs args{device_a.data, device_b.data, device_c.data, m, n, k};
  const dim3 grid(n / kTileN, (m + kTileM - 1) / kTileM);
  if (std::string fault = emulator::run(sample_gemm<kFault>, grid, kGemmThreads, kGemmShared, args); !fault.empty())
    return fault;
  cudaError_t error = cudaSuccess;
  const std::vector<float> c = device_c.read(&error);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = 0;
      for (int l = 0; l < k; ++l) sum += double(to_float(a[i * k + l])) * to_float(b[j * k + l]);
      // f32 sums of k products of magnitude below 1: k / 2 roundings of at most k 2^-24 each is a safe bound.
      if (!(std::abs(sum - c[i * n + j]) <= k * k * 0x1p-25)) return "wrong result";
    }
  return "";
}

template <PlantedSum kFault>
std::string run_sum(int n, int blocks) {
  const std::vector<float> x = test::Random(3).floats(n);
  Buffer<float> device_x(x), partial(2 * blocks + 1), sum(1);
  Buffer<uint32_t> counter(std::vector<uint32_t>{0});
  const SumArgs args{device_x.data, partial.data, counter.data, sum.data, n};
  if (std::string fault = emulator::run(sample_sum<kFault>, blocks, 128, 256, args); !fault.empty()) return fault;
  cudaError_t error = cudaSuccess;
  const float got = sum.read(&error)[0];
  if (error != cudaSuccess) return cudaGetErrorString(error);
  double expected = 0;
  for (float v : x) expected += v;
  return std::abs(got - expected) <= n * 0x1p-22 ? "" : "wrong result";
}

// Runs `body` under every seed; each must report something that contains one of `expected`.
template <class Body>
void found_always(const char* what, std::vector<std::string> expected, Body body) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::set_seed(seed);
    const std::string found = body();
    bool matches = false;
    for (const std::string& text : expected) matches |= found.find(text) != std::string::npos;
    if (!matches) test::fail(__FILE__, __LINE__, std::string(what) + ", seed " + std::to_string(seed) + ": " + found);
  }
}

template <class Body>
void clean_always(const char* what, Body body) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    emulator::set_seed(seed);
    const std::string found = body();
    if (!found.empty())
      test::fail(__FILE__, __LINE__, std::string(what) + ", seed " + std::to_string(seed) + ": " + found);
  }
}

}  // namespace

TEST("a correct pipelined product is clean in every schedule") {
  clean_always("gemm 65x128x160", [] { return run_gemm<Planted::kNothing>(65, 128, 160); });
  clean_always("gemm 1x64x32", [] { return run_gemm<Planted::kNothing>(1, 64, 32); });
}

TEST("a correct last-block sum is clean in every schedule") {
  clean_always("sum", [] { return run_sum<PlantedSum::kNothing>(5000, 7); });
}

TEST("mistakes in the pipeline of a product are found") {
  const auto found = [](const char* what, std::vector<std::string> expected, std::string (*run)(int, int, int)) {
    found_always(what, expected, [run] { return run(65, 128, 160); });
  };
  found("no barrier after the wait", {"race", "cp.async of thread", "nobody has written"},
        run_gemm<Planted::kNoBarrierAfterWait>);
  found("refill of a stage being read", {"race", "cp.async of thread"}, run_gemm<Planted::kNoBarrierBeforeRefill>);
  found("wait too lax", {"has not been waited for"}, run_gemm<Planted::kWaitTooLax>);
  found("no wait", {"has not been waited for"}, run_gemm<Planted::kNoWait>);
  found("no commit", {"has not been waited for"}, run_gemm<Planted::kNoCommit>);
  found("no zero fill", {"global cp.async of 16 bytes at byte"}, run_gemm<Planted::kNoZeroFill>);
  found("a lane skips ldmatrix", {"divergent warp"}, run_gemm<Planted::kLaneSkipsLdmatrix>);
  found("tile overrun", {"of a piece of"}, run_gemm<Planted::kTileOverrun>);
  found("wrong swizzle", {"wrong result"}, run_gemm<Planted::kWrongSwizzle>);
  found("no bound check", {"global write"}, run_gemm<Planted::kNoBoundCheck>);
  found("misaligned", {"not a multiple of 16"}, run_gemm<Planted::kMisaligned>);
  found("wrong column", {"race", "never written"}, run_gemm<Planted::kWrongColumn>);
}

TEST("mistakes in a last-block sum are found") {
  const auto found = [](const char* what, std::vector<std::string> expected, std::string (*run)(int, int)) {
    found_always(what, expected, [run] { return run(5000, 7); });
  };
  found("no fence", {"no fence and atomic"}, run_sum<PlantedSum::kNoFence>);
  found("no fence of the reader", {"no fence and atomic"}, run_sum<PlantedSum::kNoReaderFence>);
  found("no barrier before the fence", {"race"}, run_sum<PlantedSum::kNoBarrier>);
  found("no barrier of shared memory", {"race", "nobody has written"}, run_sum<PlantedSum::kNoSharedBarrier>);
  found("wrong lane", {"wrong result"}, run_sum<PlantedSum::kWrongLane>);
  found("shuffle in a branch", {"divergent warp", "exits"}, run_sum<PlantedSum::kShuffleInBranch>);
  found("early exit", {"exit"}, run_sum<PlantedSum::kEarlyExit>);
  found("uninitialised scratch", {"nobody has written"}, run_sum<PlantedSum::kUninitializedScratch>);
}

namespace qformer::cuda {

enum class Meet { kTwoBarriers, kBarrierWhileWarpWaits, kNotInMask, kExitedLane, kCarveDiffers, kSharedTooLarge };

template <Meet kFault>
QF_KERNEL void bad_meeting(Global<float> out) {
  const int thread = static_cast<int>(threadIdx.x);
  SharedMemory shared;
  const Shared<float> x = shared.take<float>(kFault == Meet::kCarveDiffers && thread == 9 ? 65 : 64);
  if (kFault == Meet::kSharedTooLarge) shared.take<float>(64);
  if (kFault == Meet::kTwoBarriers) {
    if (thread < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (kFault == Meet::kBarrierWhileWarpWaits) {
    if (thread % 32 == 0) __syncwarp(3);
    __syncthreads();
  }
  if (kFault == Meet::kNotInMask) __syncwarp(0xff);
  if (kFault == Meet::kExitedLane) {
    if (thread == 3) return;
    __syncwarp();
  }
  x.store(thread, 1.0f);
  out.store(thread, x[thread]);
}

// Each lane writes a word, another lane of the warp reads it.
template <bool kSyncWarp>
QF_KERNEL void exchange_in_warp(Global<float> out) {
  SharedMemory shared;
  const Shared<float> x = shared.take<float>(64);
  const int thread = static_cast<int>(threadIdx.x);
  x.store(thread, static_cast<float>(thread));
  if (kSyncWarp) __syncwarp();
  // A vote brings the lanes together but orders no memory.
  const bool any = __any_sync(0xffffffffu, thread >= 0);
  out.store(thread, any ? x[thread ^ 1] : 0.0f);
}

// Neighbouring halves written by different threads are no race; the same half is.
template <bool kSame>
QF_KERNEL void write_halves(Global<Half> out) {
  out.store(kSame ? 0 : static_cast<int>(threadIdx.x + blockIdx.x * 64), Half{1});
}

QF_KERNEL void shift_in_place(Global<float> x) {
  const int i = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
  x.store(i, x[i + 1]);
}

}  // namespace qformer::cuda

TEST("threads that do not meet are reported") {
  Buffer<float> out(64);
  const auto found = [&](const char* what, std::vector<std::string> expected, void (*kernel)(Global<float>)) {
    found_always(what, expected, [&] { return emulator::run(kernel, 1, 64, 256, out.data); });
  };
  found("two barriers", {"divergent block"}, bad_meeting<Meet::kTwoBarriers>);
  found("barrier while the warp waits", {"divergent warp", "deadlock"}, bad_meeting<Meet::kBarrierWhileWarpWaits>);
  found("not in its mask", {"not in its own mask"}, bad_meeting<Meet::kNotInMask>);
  found("exited lane", {"exit"}, bad_meeting<Meet::kExitedLane>);
  found("pieces differ", {"carves", "the launch gives"}, bad_meeting<Meet::kCarveDiffers>);
  found("shared memory too small", {"the launch gives"}, bad_meeting<Meet::kSharedTooLarge>);
}

TEST("lanes that poll for what nobody writes are a deadlock") {
  emulator::set_seed(1);
  CHECK(run_sum<PlantedSum::kDeadlock>(100, 2).find("deadlock") != std::string::npos);
}

TEST("a vote does not order shared memory, __syncwarp does") {
  Buffer<float> out(64);
  clean_always("with __syncwarp", [&] { return emulator::run(exchange_in_warp<true>, 1, 64, 256, out.data); });
  found_always("without", {"race", "nobody has written"},
               [&] { return emulator::run(exchange_in_warp<false>, 1, 64, 256, out.data); });
}

TEST("races of global memory within and between blocks are found") {
  Buffer<Half> halves(256);
  clean_always("neighbours", [&] { return emulator::run(write_halves<false>, 4, 64, 0, halves.data); });
  found_always("same element", {"race"}, [&] { return emulator::run(write_halves<true>, 4, 64, 0, halves.data); });
  Buffer<float> x(std::vector<float>(257, 1.0f));
  found_always("in place with a shift", {"race"}, [&] { return emulator::run(shift_in_place, 4, 64, 0, x.data); });
}

TEST("bank conflicts are counted") {
  emulator::set_seed(0);
  emulator::count_bank_conflicts(true);
  emulator::counters() = {};
  CHECK_EQ(run_gemm<Planted::kNothing>(32, 64, 64), "");
  CHECK_EQ(emulator::counters().bank_conflicts, uint64_t{0});
  // 2 k-tiles x 2 steps x 2 warps x (2 + 2) ldmatrix.x4 x 4 phases, and 2 x (128 + 256) copies of 16 bytes by 8 lanes.
  CHECK_EQ(emulator::counters().shared_wavefronts, uint64_t{2 * 2 * 2 * 4 * 4 + 2 * 384 / 8});
  CHECK_EQ(run_gemm<Planted::kNoSwizzle>(32, 64, 64), "");
  CHECK(emulator::counters().bank_conflicts > 0);
  emulator::count_bank_conflicts(false);
}
