// The state of the emulated multiprocessors: threads (fibers), warps, resident blocks, and the shadow of memory.
//
// One launch runs at a time, on the calling OS thread; `machine` is therefore plain global state behind a mutex in
// launch.cpp. A thread runs until it must wait for others (a collective, a barrier); then the next runnable lane of its
// warp continues, and when there is none the scheduler picks a warp (schedule.cpp).
//
// Time is one counter, advanced by every synchronisation. An access is ordered before a later one of another thread
// when a barrier of the block or of the warp completed after it: comparing two numbers decides it (shadow.h).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda_types.h"
#include "fiber.h"
#include "site.h"

namespace qformer::emulator {

// Whether accesses, schedules and collectives are judged. Without (QF_EMULATOR_UNCHECKED) kernels run as they stand:
// the same arithmetic much faster, for long computations by kernels whose every kind of access is judged elsewhere.
#ifdef QF_EMULATOR_UNCHECKED
constexpr bool kChecked = false;
#else
constexpr bool kChecked = true;
#endif

constexpr uint32_t kNoStack = 0xffffffffu;

struct Warp;
struct Block;
struct ThreadOrder;

// Two bytes of memory: when and by whom they were last written and read. Times below the launch's (or block's) start
// are older than the kernel; 0 is "never written".
struct Cell {
  uint32_t write_time, writer;
  uint32_t read_time, reader;
};

// A cp.async between its issue and the wait that retires it.
struct PendingCopy {
  uint32_t destination;  // byte in the block's shared memory
  const uint8_t* source;
  uint32_t group;
  bool valid, delivered;
  Site site;
};

struct Fiber {
  Context context;
  uint32_t stack;  // kNoStack until the thread first runs
  uint3 thread_index;
  uint32_t thread;   // within the block
  uint32_t grid_id;  // within the grid: block * padded threads + thread
  uint32_t lane;
  Warp* warp;
  Block* block;
  const char* waits_in;  // the call it waits in, or nullptr
  Site site{nullptr, 0};
  uint32_t copy_group;  // groups committed so far
  std::vector<PendingCopy> copies;
  ThreadOrder* order;  // what it knows of other blocks (memory_order.h); nullptr until it fences or synchronises
};

// Lanes that wait for each other in one collective.
struct Meeting {
  const char* what;
  Site site{nullptr, 0};
  uint32_t mask, arrived;
};

struct Warp {
  Fiber* lanes;
  Block* block;
  uint32_t index;  // within the block
  uint32_t alive, runnable;
  uint32_t since;  // accesses of this warp before this time are ordered for all its lanes
  uint32_t meetings_open;
  uint32_t arrived;  // lanes at a collective of all 32, where nothing is checked
  Meeting meetings[8];
  void* operands[32];
};

struct Piece {
  uint32_t begin, bytes;
};

struct Block {
  uint3 index;
  dim3 shape{0, 0, 0};
  uint32_t id;  // linear
  uint32_t alive, arrived, threads;
  uint32_t runnable_warps;
  uint32_t start, since;  // time of its first instruction, and of its last __syncthreads
  const char* barrier;
  Site barrier_site{nullptr, 0};
  uint8_t* shared = nullptr;
  uint32_t shared_bytes;
  Cell* cells = nullptr;
  std::vector<Piece> pieces;  // as the first thread carved them
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<ThreadOrder>> orders;
  std::unique_ptr<ThreadOrder> known;  // what all its threads know since the last __syncthreads
  bool active = false;
  bool has_stale_cells = false;  // a fault or an exit left copies pending in them
};

enum class FaultKind : uint8_t {
  kNone,
  kBounds,
  kAlignment,
  kUninitialised,
  kRace,
  kPendingCopy,
  kDivergence,
  kDeadlock,
  kUnsupported,
  kLaunch,
};

enum class Schedule : uint8_t { kForward, kReverse, kRandom, kFavourite, kStarved };

// What the running process did; tests read and reset it.
struct Counters {
  uint64_t launches, blocks, switches, collectives, mma;
  // Wavefronts that shared accesses took beyond the fewest possible; see bank_conflicts.h.
  uint64_t shared_wavefronts, bank_conflicts;
};

struct Machine {
  Fiber* current = nullptr;
  Context main;
  bool count_banks = false;
  bool yielded = false;
  int arch = 80;
  int multiprocessors = 4;
  uint64_t seed = 1;
  uint64_t random = 1;
  Schedule schedule = Schedule::kForward;
  uint32_t clock = 2;
  uint32_t launch_time = 2;
  uint32_t padded_threads = 32;
  dim3 grid, block;
  const char* kernel = "";
  Counters counters{};
  FaultKind fault_kind = FaultKind::kNone;
  std::string fault;
};

extern Machine machine;

// Thread ids of a grid stay below this (shadow.h uses the bits above).
constexpr uint64_t kMaxThreads = uint64_t{1} << 29;

// The next number of the launch's reproducible sequence.
inline uint32_t next_random() {
  machine.random = machine.random * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(machine.random >> 33);
}

// Ends the launch with a report that names kernel, block, thread and place.
[[noreturn]] void kernel_fault(FaultKind kind, Site site, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// Lets another runnable lane, warp or block continue; returns when the current thread is runnable and chosen again.
void suspend();

// Like suspend, but the thread stays runnable: used where threads poll or where the schedule wants a change of warp.
void yield();

// Throws the dice for a change of warp after a synchronisation.
inline void maybe_yield() {
  if (kChecked && machine.schedule == Schedule::kRandom && next_random() % 16 == 0) yield();
}

}  // namespace qformer::emulator
