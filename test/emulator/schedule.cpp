// The scheduler. It runs on the launching thread's own stack and is asked whenever a warp has nothing to run.
//
// Up to `multiprocessors` blocks are resident at a time. In full mode the scheduler changes between them now and then,
// so that code in which blocks meet (counters, locks) is exercised; else one block runs until it must wait. Blocks
// start in an order drawn from the seed.
#include "schedule.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#include "bank_conflicts.h"
#include "collectives.h"
#include "device_memory.h"
#include "memory_order.h"

namespace qformer::emulator {

Machine machine;

namespace {

constexpr size_t kMaxShared = 228 * 1024;
constexpr size_t kMaxResident = 8;
constexpr uint64_t kMaxFruitlessYields = 1'000'000;

Stacks stacks;
Block slots[kMaxResident];
const std::function<void()>* kernel_body = nullptr;

struct Run {
  uint64_t total = 0, started = 0, finished = 0;
  uint64_t stride = 1, offset = 0;
  size_t residents = 1, slot = 0;
  uint64_t fruitless = 0;
  uint32_t favourite = 0;
};
Run run;

void* map_memory(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

std::vector<uint32_t> free_stacks;
uint32_t stacks_made = 0;

void fiber_main();

void begin(Fiber& fiber) {
  if (free_stacks.empty()) free_stacks.push_back(stacks_made++);
  fiber.stack = free_stacks.back();
  free_stacks.pop_back();
  fiber.context = stacks.prepare(fiber.stack, fiber_main);
}

void release_stack(Fiber& fiber) {
  if (fiber.stack != kNoStack) free_stacks.push_back(fiber.stack);
  fiber.stack = kNoStack;
}

void end_thread() {
  Fiber& me = *machine.current;
  Warp& warp = *me.warp;
  Block& block = *me.block;
  if (warp.meetings_open) check_no_meeting_waits("exits", me.site);
  if (!me.copies.empty()) block.has_stale_cells = true;
  warp.alive &= ~(1u << me.lane);
  warp.runnable &= ~(1u << me.lane);
  --block.alive;
  if (block.alive != 0 && block.arrived == block.alive) complete_barrier(block);
}

uint32_t rotate_pick(uint32_t mask, uint32_t from) {
  const uint32_t above = from >= 31 ? 0 : mask & ~((2u << from) - 1);
  return static_cast<uint32_t>(__builtin_ctz(above ? above : mask));
}

// Threads that never wait run one after the other on one stack: the next lane begins where the last one ended.
bool continue_as_next_lane() {
  Fiber& me = *machine.current;
  if (!me.warp->runnable) return false;
  Fiber& next = me.warp->lanes[rotate_pick(me.warp->runnable, me.lane)];
  if (next.stack != kNoStack) return false;
  next.stack = me.stack;
  next.context = me.context;
  me.stack = kNoStack;
  machine.current = &next;
  return true;
}

void fiber_main() {
  enter_context(machine.main);
  do {
    (*kernel_body)();
    end_thread();
  } while (continue_as_next_lane());
  release_stack(*machine.current);  // no thread begins before the switch below, so nobody writes to it yet
  suspend();
  __builtin_unreachable();
}

bool same_shape(dim3 a, dim3 b) { return a.x == b.x && a.y == b.y && a.z == b.z; }

void start_block(size_t slot) {
  Block& block = slots[slot];
  ++machine.counters.blocks;
  const uint64_t id = (run.started++ * run.stride + run.offset) % run.total;
  const dim3 grid = machine.grid, shape = machine.block;
  block.id = static_cast<uint32_t>(id);
  block.index = {static_cast<unsigned>(id % grid.x), static_cast<unsigned>(id / grid.x % grid.y),
                 static_cast<unsigned>(id / grid.x / grid.y)};
  block.active = true;
  block.threads = block.alive = shape.x * shape.y * shape.z;
  block.arrived = 0;
  block.barrier = nullptr;
  block.start = block.since = ++machine.clock;
  block.pieces.clear();
  block.orders.clear();
  block.known.reset();
  if (!block.shared) {
    block.shared = static_cast<uint8_t*>(map_memory(kMaxShared));
    if constexpr (kChecked) block.cells = static_cast<Cell*>(map_memory(kMaxShared / 2 * sizeof(Cell)));
  }
  if (kChecked && block.has_stale_cells) memset(block.cells, 0, kMaxShared / 2 * sizeof(Cell));
  block.has_stale_cells = false;
  memset(block.shared, 0xff, block.shared_bytes);
  const uint32_t warps = (block.threads + 31) / 32;
  if (block.fibers.size() < warps * 32) block.fibers.resize(warps * 32);
  block.warps.resize(warps);
  block.runnable_warps = warps == 32 ? ~0u : (1u << warps) - 1;
  for (uint32_t w = 0; w < warps; ++w) {
    const uint32_t lanes = std::min(32u, block.threads - w * 32);
    Warp& warp = block.warps[w];
    warp.lanes = &block.fibers[w * 32];
    warp.block = &block;
    warp.index = w;
    warp.alive = warp.runnable = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warp.since = block.start;
    warp.meetings_open = warp.arrived = 0;
  }
  // Where nothing is checked, threads of equal blocks differ in nothing.
  if (!kChecked && same_shape(block.shape, shape)) return;
  block.shape = shape;
  for (uint32_t t = 0; t < block.threads; ++t) {
    Fiber& fiber = block.fibers[t];
    fiber.stack = kNoStack;
    fiber.thread_index = {t % shape.x, t / shape.x % shape.y, t / shape.x / shape.y};
    fiber.thread = t;
    fiber.grid_id = block.id * machine.padded_threads + t;
    fiber.lane = t % 32;
    fiber.warp = &block.warps[t / 32];
    fiber.block = &block;
    fiber.waits_in = nullptr;
    fiber.copy_group = 0;
    fiber.copies.clear();
    fiber.order = nullptr;
  }
}

uint32_t random_bit(uint32_t mask) {
  uint32_t skip = next_random() % static_cast<uint32_t>(__builtin_popcount(mask));
  while (skip--) mask &= mask - 1;
  return static_cast<uint32_t>(__builtin_ctz(mask));
}

uint32_t pick_warp(const Block& block, uint32_t last) {
  const uint32_t mask = block.runnable_warps;
  switch (machine.schedule) {
    case Schedule::kForward:
      return rotate_pick(mask, last);
    case Schedule::kReverse:
      return 31 - static_cast<uint32_t>(__builtin_clz(mask));
    case Schedule::kRandom:
      return random_bit(mask);
    case Schedule::kFavourite:
      return mask >> run.favourite & 1 ? run.favourite : rotate_pick(mask, last);
    case Schedule::kStarved: {
      const uint32_t others = mask & ~(1u << run.favourite);
      return random_bit(others ? others : mask);
    }
  }
  return 0;
}

bool is_runnable(const Block& block) { return block.active && block.runnable_warps != 0; }

// The slot to run next, or kMaxResident when nothing can run.
size_t pick_slot() {
  const bool may_start = run.started < run.total;
  const bool wander = run.residents > 1 && (machine.yielded || (kChecked && next_random() % 4 == 0));
  if (!wander && is_runnable(slots[run.slot])) return run.slot;
  const size_t first = wander ? next_random() % run.residents : run.slot;
  for (size_t i = 0; i < run.residents; ++i) {
    const size_t slot = (first + i) % run.residents;
    if (is_runnable(slots[slot])) return slot;
    if (!slots[slot].active && may_start) {
      start_block(slot);
      return slot;
    }
  }
  return kMaxResident;
}

void retire_finished() {
  for (size_t i = 0; i < run.residents; ++i)
    if (slots[i].active && slots[i].alive == 0) {
      if (machine.count_banks) flush_bank_counts(slots[i]);
      slots[i].active = false;
      ++run.finished;
      run.fruitless = 0;
    }
}

void report_deadlock() {
  std::string who;
  char line[256];
  int listed = 0, waiting = 0;
  for (size_t i = 0; i < run.residents; ++i) {
    const Block& block = slots[i];
    if (!block.active) continue;
    for (uint32_t t = 0; t < block.threads; ++t) {
      const Fiber& fiber = block.fibers[t];
      if (!(fiber.warp->alive >> fiber.lane & 1) || !fiber.waits_in) continue;
      ++waiting;
      // Neighbours that wait in the same place are one line.
      const bool repeats =
          t > 0 && block.fibers[t - 1].waits_in == fiber.waits_in && block.fibers[t - 1].site == fiber.site;
      if (repeats || ++listed > 8) continue;
      snprintf(line, sizeof(line), "; from block (%u,%u,%u) thread %u: %s at %s:%d", block.index.x, block.index.y,
               block.index.z, t, fiber.waits_in, fiber.site.file, fiber.site.line);
      who += line;
    }
  }
  snprintf(line, sizeof(line), "%s: deadlock: %d threads wait", machine.kernel, waiting);
  machine.fault_kind = FaultKind::kDeadlock;
  machine.fault = line + who;
}

// After a fault: threads in the middle of the kernel are dropped where they stand.
void abandon_threads() {
  for (Block& block : slots) {
    block.has_stale_cells = block.cells != nullptr;
    if (machine.count_banks) flush_bank_counts(block);
    if (!block.active) continue;
    for (uint32_t t = 0; t < block.threads; ++t) release_stack(block.fibers[t]);
  }
}

void configure(dim3 grid, dim3 block, size_t shared_bytes) {
  machine.grid = grid;
  machine.block = block;
  const uint32_t threads = block.x * block.y * block.z;
  machine.padded_threads = (threads + 31) / 32 * 32;
  machine.random = machine.seed * 0x9e3779b97f4a7c15u + machine.counters.launches * 0xd1342543de82ef95u;
  next_random();
  ++machine.counters.launches;
  // Seed 0 is the plain order; every other draws one per launch.
  machine.schedule = machine.seed == 0 || !kChecked ? Schedule::kForward : static_cast<Schedule>(next_random() % 5);
  if (kChecked && machine.clock > 0x80000000u) {
    renumber_cells();
    for (Block& slot : slots)
      if (slot.cells) memset(slot.cells, 0, kMaxShared / 2 * sizeof(Cell));
    machine.clock = 2;
  }
  machine.launch_time = ++machine.clock;
  run = Run{};
  run.total = uint64_t{grid.x} * grid.y * grid.z;
  if constexpr (kChecked)
    run.residents = static_cast<size_t>(std::min<uint64_t>(
        run.total, std::min<uint64_t>(kMaxResident, static_cast<uint64_t>(machine.multiprocessors))));
  run.favourite = next_random() % (machine.padded_threads / 32);
  if (kChecked && machine.seed != 0) {
    run.offset = next_random() % run.total;
    run.stride = 1 + next_random() % run.total;
    while (std::gcd(run.stride, run.total) != 1) ++run.stride;
  }
  for (Block& slot : slots) {
    slot.active = false;
    slot.shared_bytes = static_cast<uint32_t>(shared_bytes);
  }
}

// What the switches after this one read, the next lane's stack above all: together the stacks of a block are larger than
// the first cache. A test of a whole model is 1.2 times as fast for it.
void fetch_ahead(const Warp& warp, uint32_t lane) {
  const auto* stack = static_cast<const char*>(warp.lanes[(lane + 1) % 32].context.stack_pointer);
  __builtin_prefetch(stack);
  __builtin_prefetch(stack + 64);
  __builtin_prefetch(&warp.lanes[(lane + 2) % 32]);
}

}  // namespace

void suspend() {
  Fiber& me = *machine.current;
  Warp& warp = *me.warp;
  ++machine.counters.switches;
  const bool leaving = !(warp.alive >> me.lane & 1);
  if (warp.runnable) {
    Fiber& next = warp.lanes[rotate_pick(warp.runnable, me.lane)];
    if (next.stack == kNoStack) begin(next);
    machine.current = &next;
    fetch_ahead(warp, next.lane);
    switch_context(me.context, next.context, leaving);
    return;
  }
  warp.block->runnable_warps &= ~(1u << warp.index);
  switch_context(me.context, machine.main, leaving);
}

void yield() {
  Fiber& me = *machine.current;
  ++machine.counters.switches;
  machine.yielded = true;
  switch_context(me.context, machine.main);
}

void kernel_fault(FaultKind kind, Site site, const char* format, ...) {
  char what[400], text[640];
  va_list args;
  va_start(args, format);
  vsnprintf(what, sizeof(what), format, args);
  va_end(args);
  Fiber& me = *machine.current;
  const uint3 b = me.block->index, t = me.thread_index;
  snprintf(text, sizeof(text), "%s: %s (%s:%d, block (%u,%u,%u), thread (%u,%u,%u))", machine.kernel, what,
           site.file ? site.file : "?", site.line, b.x, b.y, b.z, t.x, t.y, t.z);
  machine.fault_kind = kind;
  machine.fault = text;
  switch_context(me.context, machine.main, true);
  __builtin_unreachable();
}

bool run_grid(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  initialize_memory();
  machine.kernel = name;
  machine.fault_kind = FaultKind::kNone;
  configure(grid, block, shared_bytes);
  kernel_body = &body;
  machine.main = {};
  uint32_t last_warp[kMaxResident] = {};
  uint32_t last_lane = 0;
  while (run.finished < run.total) {
    const size_t slot = pick_slot();
    if (slot == kMaxResident) {
      report_deadlock();
      break;
    }
    run.slot = slot;
    if (machine.yielded && ++run.fruitless > kMaxFruitlessYields) {
      machine.fault_kind = FaultKind::kDeadlock;
      machine.fault = std::string(name) + ": deadlock: threads poll and no block makes progress";
      break;
    }
    Block& picked = slots[slot];
    // After a yield any warp may go on, or one that polls could keep out the one it waits for.
    last_warp[slot] = machine.yielded ? random_bit(picked.runnable_warps) : pick_warp(picked, last_warp[slot]);
    machine.yielded = false;
    Warp& warp = picked.warps[last_warp[slot]];
    last_lane = machine.seed == 0 || !kChecked ? rotate_pick(warp.runnable, last_lane) : random_bit(warp.runnable);
    machine.current = &warp.lanes[last_lane];
    if (machine.current->stack == kNoStack) begin(*machine.current);
    switch_context(machine.main, machine.current->context);
    machine.current = nullptr;
    if (machine.fault_kind != FaultKind::kNone) break;
    retire_finished();
  }
  kernel_body = nullptr;
  if (machine.fault_kind != FaultKind::kNone) {
    abandon_threads();
    if (std::getenv("QFORMER_EMULATOR_REPORT") != nullptr) std::fprintf(stderr, "emulator: %s\n", machine.fault.c_str());
  }
  if constexpr (kChecked) forget_knowledge();
  return machine.fault_kind == FaultKind::kNone;
}

}  // namespace qformer::emulator
