// Runs one grid: resident blocks on a few emulated multiprocessors, threads as fibers, in an order drawn from the seed.
#pragma once

#include <functional>

#include "machine.h"

namespace qformer::emulator {

// Runs every block of the grid; false when a fault was reported (machine.fault).
bool run_grid(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// All threads of the block that are left have arrived.
void complete_barrier(Block& block);

}  // namespace qformer::emulator
