// Element types shared by the core, every backend and (by name) TypeScript.
// The numeric values are part of the backend ABI: append, never renumber.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef enum QfDtype {
  QF_F32 = 0,
  QF_F16 = 1,
  QF_BF16 = 2,
  QF_I32 = 3,
  QF_U8 = 4,
  QF_DTYPE_COUNT = 5,
} QfDtype;

// Bytes of one element.
static inline size_t qf_dtype_size(int32_t dtype) {
  switch (dtype) {
    case QF_F32:
    case QF_I32:
      return 4;
    case QF_F16:
    case QF_BF16:
      return 2;
    default:
      return 1;
  }
}

static inline const char* qf_dtype_name(int32_t dtype) {
  static const char* const kNames[QF_DTYPE_COUNT] = {"f32", "f16", "bf16", "i32", "u8"};
  return dtype >= 0 && dtype < QF_DTYPE_COUNT ? kNames[dtype] : "?";
}
