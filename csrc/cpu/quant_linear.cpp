// Group-quantised weights: quantize writes them, quant_linear reads them.
//
// Groups of whole units of columns are stored as quant_layout.h says and multiplied in integers (quant_dot.h). Groups
// of another size are rare (of a model whose widths are no multiples of 64), lie in order and have no kernel: a block
// of weight rows is widened to f32 and the f32 products run on it, so that this equals linear on the widened weights
// bit for bit. Traffic per block: the quantised rows once, the f32 rows written and read once in cache.

#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/dtype.h"
#include "families.h"
#include "linear.h"
#include "norm.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr int64_t kBlockBytes = 1 << 20;  // f32 weights of one block: they stay in L2 between writing and reading

// A row of levels, as QfQuantize has them on other devices.
void store_in_order(const int8_t* levels, int64_t k, int32_t bits, uint8_t* q) {
  if (bits == 8) {
    std::memcpy(q, levels, static_cast<size_t>(k));
  } else {
    for (int64_t i = 0; i < k; i += 2) q[i / 2] = static_cast<uint8_t>((levels[i] + 8) | (levels[i + 1] + 8) << 4);
  }
}

// A row of levels and of scales, as quant_layout.h says.
void store_in_block(const QfQuantize& a, int64_t row, const int8_t* levels, const uint16_t* scales) {
  const QuantPlace place = quant_place(row, a.n);
  uint8_t* q = a.q + place.block * (a.k * a.bits / 8) + 4 * place.row;
  for (int64_t unit = 0; unit < a.k / kQuantUnit; unit++, levels += kQuantUnit) {
    for (int64_t word = 0; word < unit_words(a.bits); word++, q += 4 * place.rows) {
      for (int64_t j = 0; j < 4; j++) {
        q[j] = static_cast<uint8_t>(a.bits == 8 ? levels[4 * word + j] + 128
                                                : (levels[8 * word + j] + 8) | (levels[8 * word + 4 + j] + 8) << 4);
      }
    }
  }
  const int64_t groups = a.k / a.group;
  uint16_t* to = a.scales + place.block * groups + place.row;
  for (int64_t g = 0; g < groups; g++) to[g * place.rows] = scales[g];
}

void widen_group(const uint8_t* q, float scale, int64_t count, int32_t bits, float* w) {
  if (bits == 8) {
    for (int64_t i = 0; i < count; i++) w[i] = static_cast<float>(static_cast<int8_t>(q[i])) * scale;
  } else {
    for (int64_t i = 0; i < count; i += 2) {
      w[i] = static_cast<float>((q[i / 2] & 15) - 8) * scale;
      w[i + 1] = static_cast<float>((q[i / 2] >> 4) - 8) * scale;
    }
  }
}

// Weight rows [first, first + rows) as f32.
void widen_rows(const QfQuantLinear& a, int64_t first, int64_t rows, float* out) {
  const int64_t groups = a.k / a.group, group_bytes = a.group * a.bits / 8;
  parallel_for(rows, grain_for(0.3 * static_cast<double>(a.k)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * groups; i < end * groups; i++) {
      const int64_t source = first * groups + i;
      const auto scale = std::bit_cast<float>(uint32_t{a.scales[source]} << 16);
      widen_group(a.q + source * group_bytes, scale, a.group, a.bits, out + i * a.group);
    }
  });
}

void widened_linear(const QfQuantLinear& a, const FloatRows& x) {
  const int64_t row_bytes = a.k * static_cast<int64_t>(sizeof(float));
  const int64_t block = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(row_bytes, 1), 48, 1024);
  auto* w =
      static_cast<float*>(thread_scratch(Scratch::kDequantized, static_cast<size_t>(std::min(block, a.n) * row_bytes)));
  for (int64_t first = 0; first < a.n; first += block) {
    const int64_t rows = std::min(block, a.n - first);
    widen_rows(a, first, rows, w);
    run_linear({.x = x.data,
                .w = w,
                .bias = a.bias != nullptr ? a.bias + first : nullptr,
                .residual = a.residual != nullptr ? static_cast<const float*>(a.residual) + first : nullptr,
                .y = static_cast<float*>(a.y) + first,
                .m = a.m,
                .n = rows,
                .k = a.k,
                .ldx = x.ld,
                .ldw = a.k,
                .ldr = a.ldr,
                .ldy = a.ldy,
                .w_dtype = QF_F32,
                .activation = a.activation,
                .math = QF_MATH_F32});
  }
}

}  // namespace

QfStatus quantize(int32_t, const QfQuantize* args) {
  const auto& a = *args;
  const int64_t groups = a.k / a.group;
  const auto size = static_cast<int64_t>(qf_dtype_size(a.w_dtype));
  const auto convert = kernels().elementwise.convert;
  const bool in_blocks = a.group % kQuantUnit == 0;
  parallel_for(a.n, grain_for(1.0 * static_cast<double>(a.k)), [&](int64_t begin, int64_t end) {
    auto* row = static_cast<float*>(thread_scratch(Scratch::kRow, static_cast<size_t>(a.k) * sizeof(float)));
    auto* levels = static_cast<int8_t*>(thread_scratch(Scratch::kDequantized, static_cast<size_t>(a.k)));
    auto* scales =
        static_cast<uint16_t*>(thread_scratch(Scratch::kExtra, static_cast<size_t>(groups) * sizeof(uint16_t)));
    for (int64_t i = begin; i < end; i++) {
      convert(static_cast<const char*>(a.w) + i * a.ldw * size, a.w_dtype, row, QF_F32, a.k);
      for (int64_t g = 0; g < groups; g++) {
        kernels().quant.quantize_group(row + g * a.group, a.group, a.bits, levels + g * a.group, scales + g);
      }
      if (in_blocks) {
        store_in_block(a, i, levels, scales);
        continue;
      }
      store_in_order(levels, a.k, a.bits, a.q + i * (a.k * a.bits / 8));
      std::copy(scales, scales + groups, a.scales + i * groups);
    }
  });
  return QF_OK;
}

QfStatus quant_linear(int32_t, const QfQuantLinear* args) {
  const auto& a = *args;
  const FloatRows x = normed_rows(a.x, a.norm_weight, a.m, a.k, a.ldx, a.norm_eps);
  if (a.group % kQuantUnit == 0) {
    run_linear({.x = x.data,
                .w = a.q,
                .bias = a.bias,
                .residual = static_cast<const float*>(a.residual),
                .y = static_cast<float*>(a.y),
                .m = a.m,
                .n = a.n,
                .k = a.k,
                .ldx = x.ld,
                .ldw = a.k,
                .ldr = a.ldr,
                .ldy = a.ldy,
                .w_dtype = QF_F32,
                .activation = a.activation,
                .math = a.math,
                .scales = a.scales,
                .group = a.group,
                .bits = a.bits});
  } else {
    widened_linear(a, x);
  }
  return QF_OK;
}

}  // namespace qformer::cpu
