// The bookkeeping behind fences and atomics. Kernels that never fence cost nothing here.
#include "memory_order.h"

#include <algorithm>

namespace qformer::emulator {
namespace {

std::unordered_map<const void*, Knowledge> places;  // what a word of memory publishes, in this launch

void raise(std::unordered_map<uint32_t, uint32_t>& bounds, uint32_t key, uint32_t time) {
  uint32_t& bound = bounds[key];
  bound = std::max(bound, time);
}

bool covers(const Knowledge& k, uint32_t block, uint32_t thread, uint32_t time) {
  const auto by_block = k.blocks.find(block);
  if (by_block != k.blocks.end() && time < by_block->second) return true;
  const auto by_thread = k.threads.find(thread);
  return by_thread != k.threads.end() && time < by_thread->second;
}

ThreadOrder& order_of(Fiber& fiber) {
  if (!fiber.order) {
    fiber.block->orders.push_back(std::make_unique<ThreadOrder>());
    fiber.order = fiber.block->orders.back().get();
  }
  return *fiber.order;
}

// Everything ordered before this moment of the current thread.
Knowledge snapshot(Fiber& fiber) {
  const Block& block = *fiber.block;
  Knowledge k = order_of(fiber).known;
  if (block.known) k.merge(block.known->known);
  raise(k.blocks, block.id, block.since);
  for (uint32_t lane = 0; lane < 32; ++lane) raise(k.threads, fiber.grid_id - fiber.lane + lane, fiber.warp->since);
  raise(k.threads, fiber.grid_id, ++machine.clock);
  return k;
}

}  // namespace

void Knowledge::merge(const Knowledge& other) {
  for (const auto& [block, time] : other.blocks) raise(blocks, block, time);
  for (const auto& [thread, time] : other.threads) raise(threads, thread, time);
}

bool is_ordered(uint32_t grid_id, uint32_t time) {
  const Fiber& fiber = *machine.current;
  const uint32_t block = grid_id / machine.padded_threads;
  if (block == fiber.block->id) {
    if (grid_id == fiber.grid_id || time < fiber.block->since) return true;
    if (grid_id / 32 == fiber.grid_id / 32 && time < fiber.warp->since) return true;
  }
  if (fiber.order && covers(fiber.order->known, block, grid_id, time)) return true;
  return fiber.block->known && covers(fiber.block->known->known, block, grid_id, time);
}

void fence() {
  if constexpr (!kChecked) return;
  Fiber& fiber = *machine.current;
  ThreadOrder& order = order_of(fiber);
  order.known.merge(order.seen);
  if (fiber.block->known) order.known.merge(fiber.block->known->seen);
  order.seen = {};
  order.published = snapshot(fiber);
}

void on_atomic(const void* p) {
  if constexpr (!kChecked) return;
  Fiber& fiber = *machine.current;
  const bool publishes = fiber.order && !fiber.order->published.empty();
  const auto place = places.find(p);
  if (place != places.end()) order_of(fiber).seen.merge(place->second);
  if (publishes) places[p].merge(fiber.order->published);
}

void on_acquire(const void* p) {
  if constexpr (!kChecked) return;
  const auto place = places.find(p);
  if (place != places.end()) order_of(*machine.current).known.merge(place->second);
}

void on_release(const void* p) {
  if constexpr (!kChecked) return;
  places[p] = snapshot(*machine.current);
}

void share_knowledge(Block& block) {
  if (block.orders.empty()) return;
  if (!block.known) block.known = std::make_unique<ThreadOrder>();
  for (const auto& order : block.orders) {
    block.known->known.merge(order->known);
    block.known->seen.merge(order->seen);
  }
}

void forget_knowledge() { places.clear(); }

}  // namespace qformer::emulator
