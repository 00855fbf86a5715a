// Warp collectives: lanes leave their operands and wait; the last to arrive does the work of all.
//
// Reported: a lane named in the mask that has exited or never existed, a lane not named in its own mask, lanes that
// meet in different calls, a partial warp at an instruction that needs all 32, a lane that exits or goes to a barrier
// while others wait for it.
#pragma once

#include "machine.h"

namespace qformer::emulator {

constexpr uint32_t kAllLanes = 0xffffffffu;

// Registers the current lane; true for the last of `mask`, which then must call release_lanes. Others return after it.
bool arrive_at_meeting(const char* what, uint32_t mask, Site site);
void release_lanes(uint32_t mask);

inline bool arrive(const char* what, uint32_t mask, Site site) {
  if (kChecked || mask != kAllLanes) return arrive_at_meeting(what, mask, site);
  Fiber& me = *machine.current;
  Warp& warp = *me.warp;
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    return true;
  }
  warp.runnable &= ~(1u << me.lane);
  suspend();
  return false;
}

void check_no_meeting_waits(const char* what, Site site);

template <class Operand, class Execute>
inline void meet(const char* what, uint32_t mask, Operand& operand, Site site, Execute execute) {
  Fiber& me = *machine.current;
  Warp& warp = *me.warp;
  warp.operands[me.lane] = &operand;
  if (!arrive(what, mask, site)) return;
  Operand* lanes[32];
  for (uint32_t lane = 0; lane < 32; ++lane) lanes[lane] = static_cast<Operand*>(warp.operands[lane]);
  execute(lanes);
  release_lanes(mask);
}

void sync_threads(Site site);
void sync_warp(uint32_t mask, Site site);

}  // namespace qformer::emulator
