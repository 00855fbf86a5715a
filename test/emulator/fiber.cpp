// The context switch (x86-64 and aarch64 assembly) and the stacks of fibers.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#ifdef QF_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __APPLE__
#define QF_SYMBOL "_qformer_emulator_switch"
#else
#define QF_SYMBOL "qformer_emulator_switch"
#endif

#if defined(__x86_64__)
asm(".text\n"
    ".globl " QF_SYMBOL "\n" QF_SYMBOL
    ":\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n");
constexpr size_t kSavedBytes = 6 * 8;
#elif defined(__aarch64__)
asm(".text\n"
    ".globl " QF_SYMBOL "\n" QF_SYMBOL
    ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#else
#error "the emulator's fibers know x86-64 and aarch64"
#endif

namespace qformer::emulator {
namespace {

#ifdef QF_FIBER_ASAN
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kGuardBytes = 16 * 1024;  // a multiple of every page size in use (4 and 16 KB)

}  // namespace

struct Stacks::Chunk {
  unsigned char* base;
};

Context Stacks::prepare(size_t i, void (*entry)()) {
  Chunk*& chunk = chunks_[i / kPerChunk];
  constexpr size_t kStride = kStackBytes + kGuardBytes;
  if (!chunk) {
    void* base =
        mmap(nullptr, kStride * kPerChunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    for (size_t k = 0; k < kPerChunk; ++k)
      mprotect(static_cast<unsigned char*>(base) + k * kStride, kGuardBytes, PROT_NONE);
    chunk = new Chunk{static_cast<unsigned char*>(base)};
  }
  unsigned char* bottom = chunk->base + (i % kPerChunk) * kStride + kGuardBytes;
  // Tops are staggered within the first pages, or the hot ends of all stacks would share a few cache sets.
  const size_t stagger = i % 29 * 320;
  auto* top = reinterpret_cast<void**>(bottom + kStackBytes - stagger);
  Context context;
  context.stack_bottom = bottom;
  context.stack_bytes = kStackBytes;
#ifdef QF_FIBER_ASAN
  __asan_unpoison_memory_region(bottom, kStackBytes);
#endif
#if defined(__x86_64__)
  // At entry the stack pointer is 8 below a multiple of 16, as after a call.
  top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15});
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (size_t k = 0; k < kSavedBytes / 8; ++k) *--top = nullptr;
#else
  top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 20;
  for (size_t k = 0; k < 20; ++k) top[k] = nullptr;
  top[11] = reinterpret_cast<void*>(entry);
#endif
  context.stack_pointer = top;
  return context;
}

#ifdef QF_FIBER_ASAN
void switch_context(Context& from, Context& to, bool leaving) {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fake_stack, to.stack_bottom, to.stack_bytes);
  qformer_emulator_switch(&from.stack_pointer, to.stack_pointer);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
#endif

void enter_context([[maybe_unused]] Context& main) {
#ifdef QF_FIBER_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (main.stack_bottom) return;
  main.stack_bottom = const_cast<void*>(bottom);
  main.stack_bytes = bytes;
#endif
}

}  // namespace qformer::emulator
