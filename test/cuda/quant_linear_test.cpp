// quantize on the emulated GPU gives the CPU backend's levels and scales; quant_linear gives those of linear on the widened weights,
// and what both stand for is compared with double.
#include <cfloat>

#include "cpu/cpu_backend.h"
#include "cpu/quant_layout.h"
#include "emulator/launch.h"
#include "quant_product.h"

using namespace qformer::test;

namespace {

constexpr int32_t kDtypes[] = {QF_F32, QF_F16, QF_BF16};

QfQuantize quantize_args(const QuantShape& s, const void* w, int64_t ldw, int32_t dtype, uint8_t* q,
                         uint16_t* scales) {
  return {w, q, scales, s.n, s.k, ldw, s.group, dtype, s.bits};
}

// The CPU's blocks of rows (cpu/quant_layout.h) row by row, coded as on a GPU.
Codes in_order(const QuantShape& s, const Codes& stored) {
  using namespace qformer::cpu;
  const int64_t groups = s.k / s.group;
  Codes codes = codes_of(s);
  for (int64_t i = 0; i < s.n * s.k; ++i) {
    const int64_t row = i / s.k, column = i % s.k, word = column / (32 / s.bits);
    const QuantPlace place = quant_place(row, s.n);
    const int64_t byte = place.block * s.k * s.bits / 8 + 4 * (word * place.rows + place.row) + column % 4;
    const uint8_t code = stored.q[static_cast<size_t>(byte)];
    if (s.bits == 8) {
      codes.q[static_cast<size_t>(i)] = static_cast<uint8_t>(code - quant_zero(8));
    } else {
      const int half = column % 8 < 4 ? code & 15 : code >> 4;
      codes.q[static_cast<size_t>(i / 2)] |= static_cast<uint8_t>(half << i % 2 * 4);
    }
    const int64_t group = column / s.group;
    codes.scales[static_cast<size_t>(row * groups + group)] =
        stored.scales[static_cast<size_t>(place.block * groups + group * place.rows + place.row)];
  }
  return codes;
}

Codes quantized_on_cpu(const QuantShape& s, const std::vector<uint8_t>& w, int64_t ldw, int32_t dtype) {
  Codes codes = codes_of(s);
  const QfQuantize args = quantize_args(s, w.data(), ldw, dtype, codes.q.data(), codes.scales.data());
  CHECK_EQ(qformer::cpu::cpu_backend()->quantize(0, &args), QF_OK);
  return s.group % qformer::cpu::kQuantUnit == 0 ? in_order(s, codes) : codes;
}

void check_quantize(const QuantShape& s, const std::vector<float>& values, int32_t dtype, int64_t padding = 0) {
  const int64_t ldw = s.k + padding;
  const auto w = encoded(strided(values, s.n, s.k, ldw), dtype);
  const Codes expected = quantized_on_cpu(s, w, ldw, dtype);
  DeviceBytes weights(w.size());
  weights.upload(w.data());
  const DeviceBytes q(expected.q.size()), scales(expected.scales.size() * sizeof(uint16_t));
  const QfQuantize args = quantize_args(s, weights.data(), ldw, dtype, static_cast<uint8_t*>(q.data()),
                                        static_cast<uint16_t*>(scales.data()));
  CHECK_EQ(backend().quantize(0, &args), QF_OK);
  const auto got_scales = scales.download();
  const bool same =
      q.download() == expected.q && std::memcmp(got_scales.data(), expected.scales.data(), got_scales.size()) == 0;
  if (same) return;
  fail(__FILE__, __LINE__,
       "int" + std::to_string(s.bits) + " of " + qf_dtype_name(dtype) + " " + std::to_string(s.n) + " x " +
           std::to_string(s.k) + " in groups of " + std::to_string(s.group) + " differs from the CPU's");
}

}  // namespace

TEST("quantize gives the CPU's codes and scales for every dtype, group and stride") {
  constexpr QuantShape kShapes[] = {{3, 64, 32, 8},  {3, 64, 32, 4}, {5, 96, 96, 8},   {5, 96, 96, 4},
                                    {7, 6, 2, 8},    {7, 6, 2, 4},   {2, 258, 258, 8}, {2, 258, 86, 4},
                                    {1, 128, 64, 8}, {1, 130, 26, 4},
                                    {3, 192, 64, 4}, {2, 1152, 128, 4}, {21, 128, 64, 8}, {37, 192, 64, 4}};
  for (const int32_t dtype : kDtypes) {
    for (const QuantShape& shape : kShapes) {
      check_quantize(shape, Random(1).floats(shape.n * shape.k), dtype);
      check_quantize(shape, Random(2).floats(shape.n * shape.k), dtype, 3);
    }
  }
}

TEST("quantize takes zeros, subnormals, infinities and NaN as the CPU does") {
  std::vector<float> w = Random(3).floats(6 * 32);
  for (size_t i = 0; i < 32; ++i) w[i] = 0.0f;
  for (size_t i = 32; i < 64; ++i) w[i] *= 0x1p-140f;
  w[70] = INFINITY;
  w[100] = NAN;
  for (size_t i = 128; i < 160; ++i) w[i] = NAN;
  for (size_t i = 160; i < 192; ++i) w[i] = (static_cast<float>(i) - 175.5f) * 0.5f;  // ties
  for (const int32_t dtype : kDtypes)
    for (const int32_t bits : {8, 4}) check_quantize({3, 64, 32, bits}, w, dtype);
}

TEST("quantize rounds scales up as the CPU does: at a bf16 number, next to it, below all and at the largest float") {
  for (const int32_t bits : {8, 4}) {
    const float limit = bits == 8 ? 127.0f : 7.0f, exact = limit * 0x1.02p-9f;
    std::vector<float> w = {exact, 0.0f, -exact, 0.0f, 0x1p-149f, 0x1p-149f, FLT_MAX, -FLT_MAX, -limit * 0x1p-149f, 0.0f};
    for (float above = exact; w.size() < 40; w.insert(w.end(), {0.0f, -above})) above = std::nextafter(above, 1.0f);
    check_quantize({1, 40, 2, bits}, w, QF_F32);
  }
}

TEST("quant_linear has the bits of linear on the widened weights and is right, with every epilogue") {
  for (const int32_t dtype : kDtypes) {
    for (const int32_t bits : {8, 4}) {
      for (const int64_t m : {1, 7, 40}) {
        check_product({{51, 96, 32, bits}, m, dtype, dtype}, true);
        check_product({{51, 96, 32, bits}, m, dtype, QF_F32, true, true, true, QF_ACT_SILU}, true);
        check_product({{24, 64, 16, bits}, m, dtype, dtype, true, false, true, QF_ACT_GELU_ERF, 8, 8}, true);
      }
    }
  }
}

TEST("quant_linear takes groups and rows that fill no vector") {
  for (const int32_t dtype : kDtypes) {
    for (const int32_t bits : {8, 4}) {
      check_product({{17, 50, 10, bits}, 3, dtype, dtype, false, true, false, QF_ACT_NONE, 1, 3}, true);
      check_product({{9, 24, 6, bits}, 35, dtype, dtype}, true);
      check_product({{1, 2, 2, bits}, 1, dtype, dtype}, true);
    }
  }
}

TEST("few rows stream the codes with the bits of linear, in every group, cut of k and number of rows") {
  for (const int32_t dtype : {QF_F16, QF_BF16}) {
    for (const int32_t bits : {8, 4}) {
      for (const int64_t group : {32, 64, 128, 256}) check_product({{37, 768, group, bits}, 3, dtype, dtype}, true);
      for (const int64_t m : {1, 4, 5, 8, 9, 16, 17, 32}) {
        check_product({{40, 160, 32, bits}, m, dtype, dtype, true, true, true, QF_ACT_SILU, 8, 8}, true);
      }
      // k-chunks that begin in the middle of a step and of a group, the last one short
      for (const int64_t k : {1408, 2880, 4224}) check_product({{24, k, 64, bits}, 2, dtype, QF_F32, true}, true);
      check_product({{24, 2816, 128, bits}, 32, dtype, dtype}, false);
      check_product({{24, 2816, 2816, bits}, 2, dtype, dtype}, false);  // no power of two: widened
    }
  }
}

TEST("the stream of codes is free of bank conflicts") {
  for (const int32_t bits : {8, 4}) {
    for (const int64_t m : {1, 8, 32}) {
      const QuantProduct c = {{32, 256, 64, bits}, m, QF_F16, QF_F16};
      qformer::emulator::count_bank_conflicts(true);
      qformer::emulator::counters() = {};
      check_product(c, false);
      qformer::emulator::count_bank_conflicts(false);
      CHECK(qformer::emulator::counters().shared_wavefronts > 0);
      CHECK_EQ(qformer::emulator::counters().bank_conflicts, uint64_t{0});
    }
  }
}

TEST("slices of a large weight keep the order of the whole") {
  // Alone, 256 of these rows would be summed in two chunks of k, 2112 of them in one.
  for (const int32_t bits : {8, 4}) check_product({{2112, 1408, 128, bits}, 33, QF_F16, QF_F16, true, true}, false);
  check_product({{600, 1408, 44, 4}, 2, QF_BF16, QF_F32, true, true, true}, false);
  check_product({{600, 136, 8, 8}, 70, QF_F32, QF_F32, true, true}, false);
}

TEST("no rows, no columns and no k are no error") {
  const QfQuantize none = {nullptr, nullptr, nullptr, 0, 32, 32, 32, QF_F16, 8};
  CHECK_EQ(backend().quantize(0, &none), QF_OK);
  for (const int64_t m : {0, 3}) check_product({{5, 0, 2, 8}, m, QF_F16, QF_F16, true}, false);
}
