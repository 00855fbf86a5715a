// Context switches between the threads of a block: each is a fiber with a stack of its own on the calling OS thread.
//
// A hand-written switch saves the callee-saved registers only (about 2 ns; ucontext makes a system call each time).
// Source: System V x86-64 ABI, AAPCS64.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define QF_FIBER_ASAN 1
#endif

namespace qformer::emulator {

struct Context {
  void* stack_pointer = nullptr;
  void* stack_bottom = nullptr;  // lowest address, for AddressSanitizer
  size_t stack_bytes = 0;
};

// Stacks of a fixed size in one mapping, each with a guard page below, kept for the life of the process.
class Stacks {
 public:
  // The context of stack `i`, prepared to begin in `entry` at its first switch. Grows the pool as needed.
  Context prepare(size_t i, void (*entry)());

 private:
  struct Chunk;
  static constexpr size_t kPerChunk = 256;
  Chunk* chunks_[64] = {};
};

extern "C" __attribute__((visibility("hidden"))) void qformer_emulator_switch(void** save, void* restore);

// Saves the running context in `from` and continues `to`. `leaving`: the running fiber never comes back.
#ifdef QF_FIBER_ASAN
void switch_context(Context& from, Context& to, bool leaving = false);
#else
inline void switch_context(Context& from, Context& to, bool = false) {
  qformer_emulator_switch(&from.stack_pointer, to.stack_pointer);
}
#endif

// The first thing a fiber calls: tells AddressSanitizer that the switch is complete. The first fiber of a run comes from
// `main`, whose stack bounds are learned here.
void enter_context(Context& main);

}  // namespace qformer::emulator
