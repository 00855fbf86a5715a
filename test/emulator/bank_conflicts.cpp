// Grouping of accesses into warp instructions and their wavefronts.
#include "bank_conflicts.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace qformer::emulator {
namespace {

struct Instruction {
  uint32_t bytes = 0, mask = 0;
  uint32_t offsets[32];
};
using Key = std::tuple<const Block*, const char*, int, uint32_t, uint32_t>;  // block, file, line, warp, occurrence

std::map<Key, Instruction> instructions;
std::map<Key, uint32_t> occurrences;  // the last field is the thread

}  // namespace

uint32_t wavefronts(const uint32_t* offsets, uint32_t count, uint32_t bytes) {
  uint32_t words[32][32], used[32] = {}, most = 0;
  for (uint32_t i = 0; i < count; ++i) {
    for (uint32_t b = 0; b < std::max(bytes, 4u); b += 4) {
      const uint32_t word = (offsets[i] + b) / 4, bank = word % 32;
      uint32_t* const end = words[bank] + used[bank];
      if (std::find(words[bank], end, word) != end) continue;
      words[bank][used[bank]++] = word;
      most = std::max(most, used[bank]);
    }
  }
  return most;
}

void count_phase(const uint32_t* offsets, uint32_t count, uint32_t bytes) {
  const uint32_t taken = wavefronts(offsets, count, bytes);
  machine.counters.shared_wavefronts += taken;
  machine.counters.bank_conflicts += taken - 1;
}

void count_access(int64_t offset, uint32_t bytes, Site site) {
  const Fiber& fiber = *machine.current;
  const uint32_t k = occurrences[{fiber.block, site.file, site.line, 0, fiber.thread}]++;
  Instruction& instruction = instructions[{fiber.block, site.file, site.line, fiber.warp->index, k}];
  instruction.bytes = bytes;
  instruction.mask |= 1u << fiber.lane;
  instruction.offsets[fiber.lane] = static_cast<uint32_t>(offset);
}

void flush_bank_counts(const Block& block) {
  const Key first{&block, nullptr, 0, 0, 0};
  auto it = instructions.lower_bound(first);
  while (it != instructions.end() && std::get<0>(it->first) == &block) {
    const Instruction& instruction = it->second;
    const uint32_t lanes = instruction.bytes == 16 ? 8 : instruction.bytes == 8 ? 16 : 32;
    for (uint32_t phase = 0; phase < 32; phase += lanes) {
      uint32_t offsets[32], count = 0;
      for (uint32_t lane = phase; lane < phase + lanes; ++lane)
        if (instruction.mask >> lane & 1) offsets[count++] = instruction.offsets[lane];
      if (count) count_phase(offsets, count, instruction.bytes);
    }
    it = instructions.erase(it);
  }
  auto seen = occurrences.lower_bound(first);
  while (seen != occurrences.end() && std::get<0>(seen->first) == &block) seen = occurrences.erase(seen);
}

}  // namespace qformer::emulator
