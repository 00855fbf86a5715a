// Counts wavefronts of shared memory accesses, so that tests can pin a layout to zero bank conflicts.
//
// The k-th execution of a source line by each lane of a warp is taken as one instruction. Such an instruction is served
// in phases: 32 lanes for up to 4 bytes, half warps for 8, quarter warps for 16; ldmatrix in phases of 8 rows. In a
// phase each of the 32 banks (4 bytes wide) delivers one word per wavefront; equal words are served together.
#pragma once

#include "machine.h"

namespace qformer::emulator {

// Wavefronts of one phase: the most distinct words any bank must deliver.
uint32_t wavefronts(const uint32_t* offsets, uint32_t count, uint32_t bytes);

// Notes one lane's access; the instruction is counted when the block ends.
void count_access(int64_t offset, uint32_t bytes, Site site);

// One phase of ldmatrix, counted at once.
void count_phase(const uint32_t* offsets, uint32_t count, uint32_t bytes);

// Counts the noted instructions of the finished block and forgets them.
void flush_bank_counts(const Block& block);

}  // namespace qformer::emulator
