// quantize: one scale per row and group of columns, and the levels next to w / scale.
//
// A warp per group reads it twice, the second time from L1: its largest magnitude, then the levels, two columns per
// lane. Every step is one IEEE operation, so codes and scales are the CPU's bits. Traffic: w once in, codes and scales
// once out. Registers on sm_90: 47. Runs when a model is loaded.
#include "entry.h"
#include "prims/global.h"
#include "prims/math.h"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kWarps = 8;

// As bf16 bits, rounded up; x >= 0.
QF_DEVICE uint16_t rounded_up(float x) { return static_cast<uint16_t>((bit_cast<uint32_t>(x) + 0xffffu) >> 16); }

QF_DEVICE int level_of(float w, float scale, float limit) {
  if (!(scale > 0.0f)) return 0;
  const float level = rintf(w / scale);
  return level > limit    ? static_cast<int>(limit)
         : level < -limit ? -static_cast<int>(limit)
         : level == level ? static_cast<int>(level)
                          : 0;
}

template <class T, int kBits>
QF_KERNEL void QF_LAUNCH_BOUNDS(kWarps * 32, 1) quantize_groups(QfQuantize op) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t groups = op.k / op.group, row = index / groups;
  if (row >= op.n) return;
  const Global<const T> w = Global<const T>(static_cast<const T*>(op.w)) + (row * op.ldw + index % groups * op.group);
  const Global<uint8_t> q = Global<uint8_t>(op.q) + index * (op.group * kBits / 8);

  float largest = 0.0f;
  for (int64_t i = lane; i < op.group; i += 32) largest = fmaxf(largest, fabsf(to_float(w.load(i))));
  constexpr float kLimit = kBits == 8 ? 127.0f : 7.0f;
  const uint16_t bits = rounded_up(warp_max(largest) / kLimit);
  const float scale = to_float(BFloat16{bits});
  if (lane == 0) Global<uint16_t>(op.scales).store(index, bits);
  for (int64_t i = 2 * lane; i < op.group; i += 64) {
    const int even = level_of(to_float(w.load(i)), scale, kLimit);
    const int odd = level_of(to_float(w.load(i + 1)), scale, kLimit);
    if constexpr (kBits == 8) {
      q.store(i, static_cast<uint8_t>(even));
      q.store(i + 1, static_cast<uint8_t>(odd));
    } else {
      q.store(i / 2, static_cast<uint8_t>((even + 8) | (odd + 8) << 4));
    }
  }
}

template <class T>
QfStatus launch_quantize(int32_t device, const QfQuantize& op) {
  const int64_t groups = op.n * (op.k / op.group);
  const dim3 grid(static_cast<unsigned>((groups + kWarps - 1) / kWarps));
  return launch("quantize", context_of(device).stream, op.bits == 8 ? quantize_groups<T, 8> : quantize_groups<T, 4>,
                grid, dim3(kWarps * 32), 0, op);
}

}  // namespace

QfStatus quantize(int32_t device, const QfQuantize* args) {
  switch (args->w_dtype) {
    case QF_F32:
      return launch_quantize<float>(device, *args);
    case QF_F16:
      return launch_quantize<Half>(device, *args);
    default:
      return launch_quantize<BFloat16>(device, *args);
  }
}

}  // namespace qformer::cuda
