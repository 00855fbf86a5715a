// Image preprocessing: Pillow's bicubic resize and the pixel normalisation, both bit for bit (they decide parity with
// the reference, so they are integers and table look-ups). Traffic: the source is read once; the intermediate [rows
// needed, out_width, 3] u8 is written and read once. Source: Pillow libImaging/Resample.c (behaviour), Hugging Face
// BlipImageProcessor.

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/resample_axis.h"
#include "families.h"
#include "kernels.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kRows = kResizeRows;
static_assert(kResampleBits == ResampleAxis::kBits);

// The source rows [first, first + count) that the vertical pass reads.
struct RowRange {
  int64_t first, count;
};

RowRange rows_needed(const ResampleAxis& axis) {
  const int64_t first = axis.first.front();
  return {first, axis.first.back() + axis.count.back() - first};
}

// The weights of `axis` as ResampleTaps::digits; empty where one needs more digits.
std::vector<int32_t> tap_digits(const ResampleAxis& axis, int64_t quads) {
  const auto outputs = static_cast<int64_t>(axis.first.size());
  std::vector<uint32_t> digits(static_cast<size_t>(outputs * quads * kTapDigits));
  for (int64_t i = 0; i < outputs; ++i) {
    for (int64_t k = 0; k < axis.count[i]; ++k) {
      const int64_t column = axis.first[i] % 4 + k;
      uint32_t* quad = digits.data() + (i * quads + column / 4) * kTapDigits;
      int32_t rest = axis.weights[i * axis.taps + k];
      for (int64_t d = 0; d < kTapDigits; ++d) {
        const auto digit = static_cast<int8_t>(rest);
        quad[d] |= uint32_t{static_cast<uint8_t>(digit)} << (8 * (column % 4));
        rest = (rest - digit) / 256;
      }
      if (rest != 0) return {};
    }
  }
  return {digits.begin(), digits.end()};
}

// src: [rows, width, 3] -> dst: [rows, out_width, 3]
void resize_rows(const uint8_t* src, int64_t rows, int64_t width, int64_t out_width, uint8_t* dst) {
  const ResampleAxis axis = make_resample_axis(width, out_width);
  ResampleTaps taps = {out_width, axis.taps, axis.first.data(), axis.count.data(), axis.weights.data(), nullptr, 0};
  taps.quads = (axis.taps + 6) / 4;
  std::vector<int32_t> digits;
  if (kernels().image.takes_digits) digits = tap_digits(axis, taps.quads);
  if (!digits.empty()) taps.digits = digits.data();
  const auto kernel = kernels().image.resize_horizontal;
  parallel_for((rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    auto* scratch =
        static_cast<uint8_t*>(thread_scratch(Scratch::kExtra, static_cast<size_t>((width + 63) / 64 * 64 * 3 * kRows)));
    for (int64_t row = begin * kRows; row < std::min(end * kRows, rows); row += kRows) {
      kernel(src + row * width * 3, std::min(kRows, rows - row), width, taps, dst + row * out_width * 3, scratch);
    }
  });
}

// src: rows `first`... of an image with `columns` = width * 3 -> dst: [axis outputs, columns]
void resize_columns(const uint8_t* src, int64_t first, int64_t columns, const ResampleAxis& axis, uint8_t* dst) {
  const auto kernel = kernels().image.resize_vertical;
  const int64_t rows = static_cast<int64_t>(axis.first.size());
  parallel_for(rows, grain_for(0.1 * static_cast<double>(columns * axis.taps)), [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      kernel(src + (axis.first[y] - first) * columns, columns, axis.weights.data() + y * axis.taps, axis.count[y],
             dst + y * columns);
    }
  });
}

}  // namespace

QfStatus resize_bicubic(int32_t, const QfResizeBicubic* args) {
  const auto& a = *args;
  if (a.out_height == 0 || a.out_width == 0) return QF_OK;
  if (a.height == a.out_height) {
    if (a.width != a.out_width) {
      resize_rows(a.x, a.height, a.width, a.out_width, a.y);
    } else {
      std::memcpy(a.y, a.x, static_cast<size_t>(a.height * a.width * 3));
    }
    return QF_OK;
  }
  const ResampleAxis vertical = make_resample_axis(a.height, a.out_height);
  if (a.width == a.out_width) {
    resize_columns(a.x, 0, a.width * 3, vertical, a.y);
    return QF_OK;
  }
  const RowRange needed = rows_needed(vertical);
  const size_t bytes = static_cast<size_t>(needed.count * a.out_width * 3);
  const std::unique_ptr<uint8_t[]> intermediate(new uint8_t[bytes]);
  resize_rows(a.x + needed.first * a.width * 3, needed.count, a.width, a.out_width, intermediate.get());
  resize_columns(intermediate.get(), needed.first, a.out_width * 3, vertical, a.y);
  return QF_OK;
}

QfStatus normalize_image(int32_t, const QfNormalizeImage* args) {
  const auto& a = *args;
  float table[3][256];
  for (int c = 0; c < 3; ++c) {
    for (int value = 0; value < 256; ++value) {
      table[c][value] = (static_cast<float>(static_cast<double>(value) * a.rescale) - a.mean[c]) / a.std[c];
    }
  }
  const int64_t pixels = a.height * a.width;
  parallel_for(pixels, grain_for(2.0), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int c = 0; c < 3; ++c) a.y[c * pixels + i] = table[c][a.x[i * 3 + c]];
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
