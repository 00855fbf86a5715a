// One job at a time. Its progress is one 64-bit word, (epoch | chunks | next chunk): a thread claims a chunk by a
// compare-exchange on that word, so a worker that wakes late can neither take part in a finished job nor read its
// descriptor. The descriptor is written only while no chunk is claimed. The pool is never destroyed: sleeping workers
// end with the process.

#include "thread_pool.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "cpu_count.h"

namespace qformer::cpu {
namespace {

constexpr int32_t kMaxThreads = 1024;
constexpr int64_t kChunksPerThread = 16;
constexpr auto kSpin = std::chrono::microseconds(40);

using Clock = std::chrono::steady_clock;

thread_local bool inside_job = false;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Polls `ready` for kSpin; false where it never came true.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; i++) {
      if (ready()) return true;
      relax();
    }
  } while (Clock::now() < deadline);
  return false;
}

// epoch in bits 32..63, number of chunks in bits 16..31, next chunk in bits 0..15
uint64_t pack_progress(uint32_t epoch, uint64_t chunks) { return uint64_t{epoch} << 32 | chunks << 16; }
uint64_t chunks_of(uint64_t progress) { return progress >> 16 & 0xffff; }
uint64_t next_of(uint64_t progress) { return progress & 0xffff; }
bool has_work(uint64_t progress) { return next_of(progress) < chunks_of(progress); }

// How many threads do without: where another process takes a CPU, a thread that shares it stops for milliseconds with a
// chunk in hand, and whoever waits for it loses more than the thread adds. A job in which one waits longer than all
// have worked leaves one thread out, at first for some times as long; soon after another such job, for twice as long as
// before. The CPU that falls idle then also draws the thread that goes on, should that be the one that shares.
class Crowding {
 public:
  // Threads of a job that begins now.
  int32_t threads(int32_t wanted) {
    if (left_out_ > 0 && Clock::now() >= until_) {
      left_out_--;
      changed_ = until_;
      until_ += pause_;
    }
    return std::max(wanted - left_out_, 1);
  }

  // A job has worked until its first thread found no chunk left, and waited then for the others.
  void waited(Clock::duration worked, Clock::duration waited) {
    if (waited < std::max<Clock::duration>(kStopped, worked)) return;
    const Clock::time_point now = Clock::now();
    const bool again = now - changed_ < 4 * pause_;
    pause_ = std::min<Clock::duration>(again ? 2 * pause_ : kFirstPause * waited, kLongestPause);
    left_out_++;
    changed_ = now;
    until_ = now + pause_;
  }

 private:
  static constexpr auto kStopped = std::chrono::microseconds(500);
  static constexpr int kFirstPause = 4;
  static constexpr auto kLongestPause = std::chrono::milliseconds(250);

  int32_t left_out_ = 0;
  Clock::duration pause_{0};
  Clock::time_point changed_, until_;
};

class ThreadPool {
 public:
  int32_t threads() const { return threads_.load(std::memory_order_relaxed); }

  void set_threads(int32_t threads) { threads_.store(std::clamp(threads, 1, kMaxThreads), std::memory_order_relaxed); }

  void run(int64_t count, int64_t grain, detail::RangeFunction function, const void* body) {
    std::unique_lock<std::mutex> owner(owner_, std::defer_lock);
    if (inside_job || threads() == 1 || count <= grain || !owner.try_lock()) return function(body, 0, count);
    const int32_t threads = crowding_.threads(this->threads());
    if (threads == 1) {
      owner.unlock();
      return function(body, 0, count);
    }
    start_workers(threads - 1);
    job_threads_.store(threads, std::memory_order_relaxed);
    const int64_t share = (count + threads * kChunksPerThread - 1) / (threads * kChunksPerThread);
    chunk_ = (share + grain - 1) / grain * grain;
    count_ = count;
    function_ = function;
    body_ = body;
    error_ = nullptr;
    const int64_t chunks = (count + chunk_ - 1) / chunk_;
    done_.store(0, std::memory_order_relaxed);
    first_idle_.store(0, std::memory_order_relaxed);
    progress_.store(pack_progress(++epoch_, static_cast<uint64_t>(chunks)), std::memory_order_seq_cst);
    wake_workers();
    const Clock::time_point begin = Clock::now();
    work();
    wait_until_done(chunks);
    const Clock::time_point first_idle(Clock::duration(first_idle_.load(std::memory_order_relaxed)));
    crowding_.waited(first_idle - begin, Clock::now() - first_idle);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void start_workers(int32_t wanted) {
    if (started_ == 0) keep_library_loaded();
    for (; started_ < wanted; started_++) {
      std::thread([this, index = started_ + 1] { worker_loop(index); }).detach();
    }
  }

  // Workers sleep in this library's code, so it must outlive a host that unloads add-ons.
  static void keep_library_loaded() {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&keep_library_loaded), &info) != 0 && info.dli_fname != nullptr) {
      dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
    }
  }

  void wake_workers() {
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    { std::lock_guard<std::mutex> lock(sleep_mutex_); }
    wake_.notify_all();
  }

  void worker_loop(int32_t index) {
    inside_job = true;
    const auto ready = [&] {
      return has_work(progress_.load(std::memory_order_seq_cst)) &&
             index < job_threads_.load(std::memory_order_relaxed);
    };
    for (;;) {
      if (!spin_until(ready)) {
        std::unique_lock<std::mutex> lock(sleep_mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, ready);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      }
      work();
    }
  }

  // Claims and runs chunks until none is left.
  void work() {
    const bool nested = inside_job;
    inside_job = true;
    uint64_t progress = progress_.load(std::memory_order_acquire);
    while (has_work(progress)) {
      if (!progress_.compare_exchange_weak(progress, progress + 1, std::memory_order_acq_rel)) continue;
      run_chunk(static_cast<int64_t>(next_of(progress)), static_cast<int64_t>(chunks_of(progress)));
      progress = progress_.load(std::memory_order_acquire);
    }
    inside_job = nested;
  }

  void run_chunk(int64_t index, int64_t chunks) {
    const int64_t begin = index * chunk_;
    try {
      function_(body_, begin, std::min(begin + chunk_, count_));
    } catch (...) {
      std::lock_guard<std::mutex> lock(done_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    if (!has_work(progress_.load(std::memory_order_relaxed))) {
      Clock::rep none = 0;  // before done_: the job lasts till then
      first_idle_.compare_exchange_strong(none, Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    }
    if (done_.fetch_add(1, std::memory_order_seq_cst) + 1 < chunks) return;
    if (!owner_sleeps_.load(std::memory_order_seq_cst)) return;
    { std::lock_guard<std::mutex> lock(done_mutex_); }
    finished_.notify_one();
  }

  void wait_until_done(int64_t chunks) {
    const auto ready = [&] { return done_.load(std::memory_order_seq_cst) == chunks; };
    if (ready() || spin_until(ready)) return;
    std::unique_lock<std::mutex> lock(done_mutex_);
    owner_sleeps_.store(true, std::memory_order_seq_cst);
    finished_.wait(lock, ready);
    owner_sleeps_.store(false, std::memory_order_seq_cst);
  }

  std::mutex owner_;  // held by the thread whose job runs
  std::atomic<int32_t> threads_{usable_cpus()};
  Crowding crowding_;
  int32_t started_ = 0;
  uint32_t epoch_ = 0;

  detail::RangeFunction function_ = nullptr;
  const void* body_ = nullptr;
  int64_t count_ = 0, chunk_ = 0;
  std::exception_ptr error_;

  alignas(64) std::atomic<uint64_t> progress_{0};
  std::atomic<int32_t> job_threads_{1};  // set before progress_
  alignas(64) std::atomic<int64_t> done_{0};
  std::atomic<Clock::rep> first_idle_{0};  // when a thread first found no chunk left
  std::atomic<bool> owner_sleeps_{false};
  std::mutex done_mutex_;
  std::condition_variable finished_;

  alignas(64) std::atomic<int32_t> sleepers_{0};
  std::mutex sleep_mutex_;
  std::condition_variable wake_;
};

ThreadPool& pool() {
  static ThreadPool* const instance = new ThreadPool;
  return *instance;
}

}  // namespace

int32_t pool_threads() { return pool().threads(); }

void set_pool_threads(int32_t threads) { pool().set_threads(threads); }

void detail::run_ranges(int64_t count, int64_t grain, RangeFunction function, const void* body) {
  if (count > 0) pool().run(count, std::max<int64_t>(grain, 1), function, body);
}

}  // namespace qformer::cpu
