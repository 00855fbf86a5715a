// The limits of the machine that every other figure is divided by: f32 FMA and bf16 dot rates, read bandwidth of DRAM,
// L3 and L2.
//
// A program of its own (no Node, no library code), compiled by the harness. It uses the CPUs it is allowed to run on,
// one thread each, and prints one JSON object. Several loops of each kind compete and the best median counts, since one
// loop may lose to an accident of register allocation or prefetching. Independent accumulators hide the latency: 4 clocks on 2
// units need at least 8, and with the two factors they must fit the registers, 16 up to AVX2. Traffic of the read loops: the buffer once per pass, nothing written.
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#define ALWAYS_INLINE inline __attribute__((always_inline))

volatile float scale = 0.999f, shift = 0.001f;
std::atomic<float> sink;

template <int Bytes>
struct Vector {
  typedef float Type __attribute__((vector_size(Bytes)));
};

// acc = acc · scale + shift stays near 1: no denormals, no overflow, and no way to leave the work out.
template <int Bytes, int kAccumulators>
ALWAYS_INLINE double fma_loop(long rounds) {
  using V = typename Vector<Bytes>::Type;
  V acc[kAccumulators];
  const V a = V{} + scale, b = V{} + shift;
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; i++) acc[i] = V{} + static_cast<float>(i);
  for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; i++) acc[i] = acc[i] * a + b;
  }
  V sum{};
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; i++) sum += acc[i];
  sink = sum[0];
  return 2.0 * (Bytes / 4) * kAccumulators * static_cast<double>(rounds);
}

// Streams are separate parts of the buffer read in step, so that several hardware prefetchers run at once.
template <int Bytes, int Streams, bool Prefetch>
ALWAYS_INLINE double read_loop(const char* data, size_t bytes) {
  using V = typename Vector<Bytes>::Type;
  constexpr int kLine = 64 / Bytes;
  const size_t part = bytes / Streams;
  V acc[Streams * kLine] = {};
  for (size_t at = 0; at < part; at += 64) {
#pragma GCC unroll 8
    for (int s = 0; s < Streams; s++) {
      const char* line = data + s * part + at;
      if (Prefetch) __builtin_prefetch(line + 4096, 0, 0);
#pragma GCC unroll 4
      for (int i = 0; i < kLine; i++) acc[s * kLine + i] += *reinterpret_cast<const V*>(line + i * Bytes);
    }
  }
  V sum{};
  for (const V& a : acc) sum += a;
  sink = sum[0];
  return static_cast<double>(part * Streams);
}

// One cache line after the other, eight lines in flight.
template <int Bytes>
ALWAYS_INLINE double read_linear(const char* data, size_t bytes) {
  using V = typename Vector<Bytes>::Type;
  constexpr int kLoads = 512 / Bytes < 8 ? 512 / Bytes : 8;
  V acc[kLoads] = {};
  for (size_t at = 0; at < bytes; at += kLoads * Bytes) {
#pragma GCC unroll 8
    for (int i = 0; i < kLoads; i++) acc[i] += *reinterpret_cast<const V*>(data + at + i * Bytes);
  }
  V sum{};
  for (const V& a : acc) sum += a;
  sink = sum[0];
  return static_cast<double>(bytes);
}

using Compute = double (*)(long);
using Read = double (*)(const char*, size_t);

#define LOOPS(NAME, TARGET, BYTES, ACCUMULATORS)                                                                \
  TARGET double fma_##NAME(long rounds) { return fma_loop<BYTES, ACCUMULATORS>(rounds); }                          \
  TARGET double linear_##NAME(const char* d, size_t n) { return read_linear<BYTES>(d, n); }          \
  TARGET double streams_##NAME(const char* d, size_t n) { return read_loop<BYTES, 4, false>(d, n); } \
  TARGET double prefetch_##NAME(const char* d, size_t n) { return read_loop<BYTES, 4, true>(d, n); }

LOOPS(base, , 16, 12)
#if defined(__x86_64__)
LOOPS(avx2, __attribute__((target("avx2,fma"))), 32, 12)
LOOPS(avx512, __attribute__((target("avx512f"))), 64, 16)

// Products of 1/256 add up to a bound where rounding stops them: nothing overflows.
__attribute__((target("avx512bf16,avx512f"))) double dot_avx512bf16(long rounds) {
  constexpr int kAccumulators = 16;
  __m512 acc[kAccumulators];
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3d80), b = (__m512bh)_mm512_set1_epi16(0x3d80);
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; i++) acc[i] = _mm512_set1_ps(scale);
  for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; i++) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  }
  __m512 sum = acc[0];
#pragma GCC unroll 16
  for (int i = 1; i < kAccumulators; i++) sum += acc[i];
  sink = sum[0];
  return 64.0 * kAccumulators * static_cast<double>(rounds);
}

#if defined(__linux__)
// Two by two tiles, as a matrix product uses the unit, without the loads. The values are random: with zeros the core
// draws less power and clocks higher than any product does.
__attribute__((target("amx-tile,amx-bf16"))) double dot_amx(long rounds) {
  alignas(64) static const struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) static uint16_t values[4 * 512];
  uint32_t state = 1;
  for (uint16_t& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<uint16_t>(0x3c00 | (state >> 16 & 0x80ff));
  }
  asm volatile("" ::"r"(&config), "r"(values) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values + 512, 64);
  _tile_loadd(6, values + 1024, 64);
  _tile_loadd(7, values + 1536, 64);
  for (long r = 0; r < rounds; r++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * 16 * 16 * 64 * static_cast<double>(rounds);
}

// Linux lends the tile registers to processes that ask (arch_prctl ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const unsigned wanted = 1u << 22 | 1u << 24;  // AMX-BF16, AMX-TILE
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & wanted) != wanted) return false;
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#else
bool has_amx() { return false; }
double dot_amx(long) { return 0; }
#endif
#endif

struct Loops {
  std::string isa = "baseline";
  std::vector<std::pair<const char*, Compute>> f32 = {{"16-byte", fma_base}}, bf16;
  std::vector<std::pair<const char*, Read>> read = {
      {"linear 16", linear_base}, {"4 streams 16", streams_base}, {"4 streams, prefetch 16", prefetch_base}};
};

Loops available_loops() {
  Loops loops;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    loops.isa = "avx2";
    loops.f32.push_back({"32-byte", fma_avx2});
    loops.read = {
        {"linear 32", linear_avx2}, {"4 streams 32", streams_avx2}, {"4 streams, prefetch 32", prefetch_avx2}};
  }
  if (__builtin_cpu_supports("avx512f")) {
    loops.isa = "avx512";
    loops.f32.push_back({"64-byte", fma_avx512});
    loops.read.insert(
        loops.read.end(),
        {{"linear 64", linear_avx512}, {"4 streams 64", streams_avx512}, {"4 streams, prefetch 64", prefetch_avx512}});
  }
  if (__builtin_cpu_supports("avx512bf16")) {
    loops.isa = "avx512bf16";
    loops.bf16.push_back({"vdpbf16ps", dot_avx512bf16});
  }
  if (has_amx()) {
    loops.isa = "amx";
    loops.bf16.push_back({"tdpbf16ps", dot_amx});
  }
#endif
  return loops;
}

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Work per second of all threads together, from the common start until the last one has finished.
double rate(const std::vector<int>& cpus, const std::function<double(size_t)>& work) {
  std::atomic<size_t> ready{0};
  std::atomic<bool> go{false};
  std::vector<double> done(cpus.size());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < cpus.size(); t++) {
    threads.emplace_back([&, t] {
      pin(cpus[t]);
      ready++;
      while (!go) std::this_thread::yield();
      done[t] = work(t);
    });
  }
  while (ready < cpus.size()) std::this_thread::yield();
  const double start = now();
  go = true;
  for (std::thread& thread : threads) thread.join();
  const double seconds = now() - start;
  double total = 0;
  for (const double amount : done) total += amount;
  return total / seconds / 1e9;
}

struct Samples {
  const char* loop;
  std::vector<double> rates;
  double median() const { return rates[rates.size() / 2]; }
};

// Rounds go over all loops in turn, so that a slow moment of the machine hits each of them alike.
template <class Loop, class Run>
void print_best(const char* name, const std::vector<std::pair<const char*, Loop>>& loops, int rounds, const Run& run) {
  if (loops.empty()) return;
  std::vector<Samples> all;
  for (const auto& [loop, function] : loops) all.push_back({loop, {}});
  for (int round = 0; round < rounds; round++)
    for (size_t i = 0; i < loops.size(); i++) all[i].rates.push_back(run(loops[i].second));
  for (Samples& samples : all) std::sort(samples.rates.begin(), samples.rates.end());
  const auto slower = [](const Samples& a, const Samples& b) { return a.median() < b.median(); };
  const Samples& best = *std::max_element(all.begin(), all.end(), slower);
  std::printf(", \"%s\": {\"median\": %.2f, \"min\": %.2f, \"max\": %.2f, \"samples\": %d, \"loop\": \"%s\"}", name,
              best.median(), best.rates.front(), best.rates.back(), rounds, best.loop);
}

char* touched_buffer(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    std::fprintf(stderr, "peaks: cannot map %zu bytes\n", bytes);
    std::exit(1);
  }
#if defined(MADV_HUGEPAGE)
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
  std::memset(data, 0, bytes);  // all bits zero: 0.0f; touched, so that no pass reads the shared zero page
  static_cast<char*>(data)[0] = 1;
  return static_cast<char*>(data);
}

}  // namespace

// peaks [ROUNDS [DRAM_MIB_PER_THREAD [LIMIT]]]: all limits, or one of f32, bf16, dram, l3, l2.
int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 9;
  const size_t dram = static_cast<size_t>(argc > 2 ? std::atoi(argv[2]) : 256) << 20;
  const auto wanted = [&](const char* limit) { return argc <= 3 || std::strcmp(argv[3], limit) == 0; };
  const size_t l3 = size_t{8} << 20;
  const size_t l2 = size_t{256} << 10;
  const std::vector<int> cpus = allowed_cpus();
  const Loops loops = available_loops();
  std::vector<char*> buffers;
  for (size_t t = 0; t < cpus.size(); t++) buffers.push_back(touched_buffer(dram));

  std::printf("{\"isa\": \"%s\", \"threads\": %zu", loops.isa.c_str(), cpus.size());
  const auto compute = [&](Compute loop) {
    return rate(cpus, [&](size_t) { return loop(1'250'000); });
  };
  if (wanted("f32")) print_best("f32", loops.f32, rounds, compute);
  if (wanted("bf16")) print_best("bf16", loops.bf16, rounds, compute);
  const auto reader = [&](size_t bytes, int passes) {
    return [&, bytes, passes](Read loop) {
      return rate(cpus, [&](size_t t) {
        double read = 0;
        for (int pass = 0; pass < passes; pass++) read += loop(buffers[t], bytes);
        return read;
      });
    };
  };
  if (wanted("dram")) print_best("dram", loops.read, rounds, reader(dram, 1));
  if (wanted("l3")) print_best("l3", loops.read, rounds, reader(l3 / cpus.size(), static_cast<int>((dram * cpus.size()) / l3)));
  if (wanted("l2")) print_best("l2", loops.read, rounds, reader(l2, static_cast<int>(dram / l2)));
  std::printf("}\n");
  return 0;
}
