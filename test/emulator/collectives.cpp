// Meetings of lanes, and the two barriers.
#include "collectives.h"

#include <cstdio>

#include "memory_order.h"
#include "schedule.h"

namespace qformer::emulator {
namespace {

void check_mask(const Fiber& me, const char* what, uint32_t mask, Site site) {
  if (!(mask >> me.lane & 1))
    kernel_fault(FaultKind::kDivergence, site, "%s: lane %u is not in its own mask %08x", what, me.lane, mask);
  const uint32_t missing = mask & ~me.warp->alive;
  if (missing)
    kernel_fault(FaultKind::kDivergence, site, "%s: lane %d of mask %08x has exited or does not exist", what,
                 __builtin_ctz(missing), mask);
}

Meeting& join(Warp& warp, const Fiber& me, const char* what, uint32_t mask, Site site) {
  for (uint32_t i = 0; i < warp.meetings_open; ++i) {
    Meeting& m = warp.meetings[i];
    if (!(m.mask & mask)) continue;
    if (m.mask == mask && m.what == what && m.site == site) return m;
    const Fiber& other = warp.lanes[__builtin_ctz(m.arrived)];
    kernel_fault(FaultKind::kDivergence, site,
                 "divergent warp: lane %u is at %s (mask %08x), lane %u at %s (%s:%d, mask %08x)", me.lane, what, mask,
                 other.lane, m.what, m.site.file, m.site.line, m.mask);
  }
  if (warp.meetings_open == 8) kernel_fault(FaultKind::kUnsupported, site, "%s: more than 8 groups of lanes", what);
  Meeting& m = warp.meetings[warp.meetings_open++];
  m = {what, site, mask, 0};
  return m;
}

}  // namespace

bool arrive_at_meeting(const char* what, uint32_t mask, Site site) {
  Fiber& me = *machine.current;
  Warp& warp = *me.warp;
  if (__builtin_expect(!(mask >> me.lane & 1) || (mask & ~warp.alive), 0)) check_mask(me, what, mask, site);
  Meeting& m = join(warp, me, what, mask, site);
  m.arrived |= 1u << me.lane;
  if (m.arrived == mask) {
    m = warp.meetings[--warp.meetings_open];
    ++machine.counters.collectives;
    return true;
  }
  warp.runnable &= ~(1u << me.lane);
  me.waits_in = what;
  me.site = site;
  suspend();
  me.waits_in = nullptr;
  return false;
}

void release_lanes(uint32_t mask) {
  machine.current->warp->runnable |= mask;
  maybe_yield();
}

void check_no_meeting_waits(const char* what, Site site) {
  const Fiber& me = *machine.current;
  const Warp& warp = *me.warp;
  for (uint32_t i = 0; i < warp.meetings_open; ++i) {
    const Meeting& m = warp.meetings[i];
    if (m.mask >> me.lane & 1)
      kernel_fault(FaultKind::kDivergence, site, "divergent warp: lane %u %s while lane %d waits for it in %s (%s:%d)",
                   me.lane, what, __builtin_ctz(m.arrived), m.what, m.site.file, m.site.line);
  }
}

void sync_warp(uint32_t mask, Site site) {
  Fiber& me = *machine.current;
  if (!arrive("__syncwarp", mask, site)) return;
  me.warp->since = ++machine.clock;
  release_lanes(mask);
}

void complete_barrier(Block& block) {
  block.arrived = 0;
  block.barrier = nullptr;
  block.since = ++machine.clock;
  for (Warp& warp : block.warps) {
    warp.since = block.since;
    warp.runnable = warp.alive;
    if (warp.alive) block.runnable_warps |= 1u << warp.index;
  }
  if constexpr (kChecked) share_knowledge(block);
}

void sync_threads(Site site) {
  Fiber& me = *machine.current;
  Block& block = *me.block;
  if constexpr (kChecked) {
    check_no_meeting_waits("is at __syncthreads", site);
    if (!block.barrier) {
      block.barrier = "__syncthreads";
      block.barrier_site = site;
    } else if (!(block.barrier_site == site)) {
      kernel_fault(FaultKind::kDivergence, site,
                   "divergent block: this thread is at __syncthreads, others at that of %s:%d", block.barrier_site.file,
                   block.barrier_site.line);
    }
  }
  if (++block.arrived == block.alive) {
    complete_barrier(block);
    maybe_yield();
    return;
  }
  me.warp->runnable &= ~(1u << me.lane);
  me.waits_in = "__syncthreads";
  me.site = site;
  suspend();
  me.waits_in = nullptr;
}

}  // namespace qformer::emulator
