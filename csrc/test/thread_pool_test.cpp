// The CPU thread pool: every index exactly once, from any number of callers, nested, with exceptions, at any pool size.
#include "cpu/thread_pool.h"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "test.h"

namespace {

using namespace qformer;

// Number of indices of [0, count) that were not visited exactly once.
int64_t wrong_visits(int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
  cpu::parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) visits[static_cast<size_t>(i)]++;
  });
  int64_t wrong = 0;
  for (const auto& visit : visits) wrong += visit != 1;
  return wrong;
}

// Restores the pool's size at the end of a case.
struct PoolSize {
  const int32_t before = cpu::pool_threads();
  ~PoolSize() { cpu::set_pool_threads(before); }
};

}  // namespace

TEST("parallel_for visits every index exactly once, whatever the count, the grain and the number of threads") {
  const PoolSize restore;
  for (int32_t threads : {1, 2, 3, 7}) {
    cpu::set_pool_threads(threads);
    for (int64_t count : {0, 1, 2, 17, 1000, 100003}) {
      for (int64_t grain : {1, 3, 64}) CHECK_EQ(wrong_visits(count, grain), 0);
    }
  }
}

TEST("ranges of parallel_for begin at multiples of the grain") {
  const PoolSize restore;
  cpu::set_pool_threads(3);
  std::atomic<int> misplaced{0};
  cpu::parallel_for(1001, 8, [&](int64_t begin, int64_t) { misplaced += begin % 8 != 0; });
  CHECK_EQ(misplaced.load(), 0);
}

TEST("several callers at once and nested calls all complete") {
  const PoolSize restore;
  cpu::set_pool_threads(4);
  std::atomic<int64_t> wrong{0};
  const auto caller = [&](int seed) {
    for (int i = 0; i < 300; i++) {
      wrong += wrong_visits(1 + (i * 7919 + seed) % 500, 1 + i % 5);
      cpu::parallel_for(6, 1, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++) wrong += wrong_visits(10, 1);
      });
      // Long enough for workers to fall asleep.
      if (i % 60 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
  };
  std::thread first(caller, 1), second(caller, 2);
  caller(3);
  first.join();
  second.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST("an exception in a range reaches the caller, and the pool works on") {
  const PoolSize restore;
  for (int32_t threads : {1, 4}) {
    cpu::set_pool_threads(threads);
    for (int i = 0; i < 50; i++) {
      CHECK_THROWS(cpu::parallel_for(100, 1,
                                     [](int64_t, int64_t end) {
                                       if (end > 50) throw std::runtime_error("range");
                                     }),
                   std::runtime_error);
    }
    CHECK_EQ(wrong_visits(1000, 1), 0);
  }
}

TEST("a thread that stops with a chunk in hand is left out for a while, then takes part again") {
  const PoolSize restore;
  cpu::set_pool_threads(2);
  // A job of two chunks: whether another thread took one, which then pauses as the caller does.
  const auto shared = [](std::chrono::milliseconds caller_pause, std::chrono::milliseconds other_pause) {
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> by_other{false};
    cpu::parallel_for(2, 1, [&](int64_t, int64_t) {
      const bool other = std::this_thread::get_id() != caller;
      if (other) by_other = true;
      std::this_thread::sleep_for(other ? other_pause : caller_pause);
    });
    return by_other.load();
  };
  const auto until_shared = [&](std::chrono::milliseconds caller_pause, std::chrono::milliseconds other_pause) {
    for (int i = 0; i < 2000; i++) {
      if (shared(caller_pause, other_pause)) return true;
    }
    return false;
  };
  using std::chrono::milliseconds;
  CHECK(until_shared(milliseconds(1), milliseconds(200)));
  CHECK(!shared(milliseconds(1), milliseconds(0)));
  CHECK(until_shared(milliseconds(1), milliseconds(0)));
}

TEST("the pool's size is clamped to what it can hold") {
  const PoolSize restore;
  cpu::set_pool_threads(0);
  CHECK_EQ(cpu::pool_threads(), 1);
  cpu::set_pool_threads(1 << 20);
  CHECK_EQ(cpu::pool_threads(), 1024);
}
