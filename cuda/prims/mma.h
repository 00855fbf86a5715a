// Tensor core products of one warp and the loads of their fragments.
//
// With g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   A[16,16]: register r holds row g + 8 (r % 2), columns 2t + 8 (r / 2) and the next
//   B[16,8]:  register r holds rows k = 2t + 8 r and the next, column g
//   C[16,8]:  element i holds row g + 8 (i / 2), column 2t + i % 2
// ldmatrix: lanes 8j … 8j + 7 give the addresses of the eight 16-byte rows of matrix j; each lane receives elements
// (g, 2t) and (g, 2t + 1) of every matrix, with _trans of its transpose. All are executed by all 32 lanes together.
#pragma once

#include "prims/shared.h"

#ifdef QF_EMULATED
#include "mma_model.h"
#else

namespace qformer::cuda::prims {

template <class T>
QF_DEVICE void ldmatrix_x4(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
template <class T>
QF_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address())
               : "memory");
}
template <class T>
QF_DEVICE void ldmatrix_x2(uint32_t (&r)[2], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.address())
               : "memory");
}
template <class T>
QF_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], Shared<T> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.address())
               : "memory");
}

// d += a · b for a [16,8] and b [8,8]. Half on every architecture, BFloat16 from sm_80.
template <class T>
QF_DEVICE void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  if constexpr (kIsHalf<T>) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  } else {
#if QF_DEVICE_ARCH >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
#else
    __trap();  // the host refuses bf16 on this device before it launches
#endif
  }
}

// d += a · b for a [16,16] and b [16,8]; on sm_75 two products of k = 8.
template <class T>
QF_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if QF_DEVICE_ARCH >= 800
  if constexpr (kIsHalf<T>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  const uint32_t a_low[2] = {a[0], a[1]}, a_high[2] = {a[2], a[3]};
  const uint32_t b_low[1] = {b[0]}, b_high[1] = {b[1]};
  mma_m16n8k8<T>(d, a_low, b_low);
  mma_m16n8k8<T>(d, a_high, b_high);
#endif
}

}  // namespace qformer::cuda::prims

#endif
