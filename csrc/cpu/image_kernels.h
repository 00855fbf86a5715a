// Per-ISA part of the image family: the two passes of the bit-exact bicubic resize.
// Horizontal: 16 source rows are transposed to [column][channel][row], so that a tap is one widening multiply-add over
// 16 rows; vertical: a tap is a multiply-add over a strip of a row. Integers only, so every instruction set gives the
// same bytes. Traffic: source read once, intermediate [rows, out_width, 3] u8 written and read once.
#pragma once

#if defined(QF_ISA_BF16_DOT)
#include "image_quads.h"
#endif
#include "kernels.h"
#include "simd.h"

namespace qformer::cpu::QF_ISA {

constexpr int64_t kResizeStrip = 64;

inline uint8_t round_to_u8(int32_t sum) {
  const int32_t value = sum >> kResampleBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

inline void resize_horizontal(const uint8_t* src, int64_t rows, int64_t width, const ResampleTaps& axis, uint8_t* dst,
                              uint8_t* scratch) {
  const int64_t columns = width * 3, out_width = axis.outputs;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < columns; ++j) scratch[j * kResizeRows + r] = src[r * columns + j];
  }
  for (int64_t x = 0; x < out_width; ++x) {
    int32_t sum[3][kResizeRows];
    for (auto& channel : sum) {
      for (int32_t& value : channel) value = 1 << (kResampleBits - 1);
    }
    const uint8_t* in = scratch + axis.first[x] * 3 * kResizeRows;
    const int32_t* weights = axis.weights + x * axis.taps;
    for (int64_t k = 0; k < axis.count[x]; ++k, in += 3 * kResizeRows) {
      const int32_t weight = weights[k];
      for (int64_t r = 0; r < kResizeRows; ++r) sum[0][r] += weight * in[r];
      for (int64_t r = 0; r < kResizeRows; ++r) sum[1][r] += weight * in[kResizeRows + r];
      for (int64_t r = 0; r < kResizeRows; ++r) sum[2][r] += weight * in[2 * kResizeRows + r];
    }
    for (int64_t r = 0; r < rows; ++r) {
      uint8_t* out = dst + (r * out_width + x) * 3;
      for (int64_t c = 0; c < 3; ++c) out[c] = round_to_u8(sum[c][r]);
    }
  }
}

inline void resize_vertical(const uint8_t* src, int64_t columns, const int32_t* weights, int64_t count, uint8_t* dst) {
  int64_t j = 0;
  for (; j + kResizeStrip <= columns; j += kResizeStrip) {
    int32_t sum[kResizeStrip];
    for (int32_t& value : sum) value = 1 << (kResampleBits - 1);
    for (int64_t k = 0; k < count; ++k) {
      const uint8_t* in = src + k * columns + j;
      for (int64_t i = 0; i < kResizeStrip; ++i) sum[i] += weights[k] * in[i];
    }
    for (int64_t i = 0; i < kResizeStrip; ++i) dst[j + i] = round_to_u8(sum[i]);
  }
  for (; j < columns; ++j) {
    int32_t sum = 1 << (kResampleBits - 1);
    for (int64_t k = 0; k < count; ++k) sum += weights[k] * src[k * columns + j];
    dst[j] = round_to_u8(sum);
  }
}

#if defined(QF_ISA_BF16_DOT)
inline void resize_horizontal_digits(const uint8_t* src, int64_t rows, int64_t width, const ResampleTaps& axis,
                                     uint8_t* dst, uint8_t* scratch) {
  const auto pass = axis.digits != nullptr ? &resize_horizontal_quads : &resize_horizontal;
  pass(src, rows, width, axis, dst, scratch);
}

constexpr ImageKernels kImageKernels = {true, &resize_horizontal_digits, &resize_vertical};
#else
constexpr ImageKernels kImageKernels = {false, &resize_horizontal, &resize_vertical};
#endif

}  // namespace qformer::cpu::QF_ISA
