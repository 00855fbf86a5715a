// What happens to a finished sum of a decode product: bias, activation, residual, in f32, then one rounding.
#pragma once

#include "activation.cuh"
#include "prims/global.h"

namespace qformer::cuda {

// Part of a kernel's parameters.
struct DecodeOutput {
  const float* bias;     // [n] or null
  const void* residual;  // [m, n] as y, rows ldr apart, or null
  void* y;               // [m, n] f32 or T, rows ldy apart
  int64_t ldr, ldy;
  int32_t n;
  int32_t activation;
  bool y_f32;
};

template <class T>
QF_DEVICE void store_decoded(const DecodeOutput& out, int token, int column, float sum) {
  float value[1] = {sum};
  if (out.bias != nullptr) value[0] += Global<const float>(out.bias).load(column);
  activate(value, out.activation);
  const int64_t residual_at = token * out.ldr + column, y_at = token * out.ldy + column;
  if (out.y_f32) {
    if (out.residual != nullptr)
      value[0] += Global<const float>(static_cast<const float*>(out.residual)).load(residual_at);
    Global<float>(static_cast<float*>(out.y)).store(y_at, value[0]);
  } else {
    if (out.residual != nullptr)
      value[0] += to_float(Global<const T>(static_cast<const T*>(out.residual)).load(residual_at));
    Global<T>(static_cast<T*>(out.y)).store(y_at, from_float<T>(value[0]));
  }
}

}  // namespace qformer::cuda
