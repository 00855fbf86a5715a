// ldmatrix and mma of prims/mma.h as warp collectives of all 32 lanes. The layouts are written out in prims/mma.h.
//
// Products are exact in float and are added in the order of k with one rounding each.
#pragma once

#include "collectives.h"
#include "prims/shared.h"

namespace qformer::emulator {

struct LdmatrixLane {
  SharedPlace row;
  uint32_t* registers;
};
struct MmaLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

void ldmatrix(SharedPlace row, uint32_t* registers, uint32_t count, bool transposed, Site site);
// k: 8 or 16.
void mma(float* d, const uint32_t* a, const uint32_t* b, int k, bool is_half, Site site);

}  // namespace qformer::emulator

namespace qformer::cuda::prims {

template <class T>
void ldmatrix_x4(uint32_t (&r)[4], Shared<T> row, Site site = Site()) {
  emulator::ldmatrix(row.place(), r, 4, false, site);
}
template <class T>
void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<T> row, Site site = Site()) {
  emulator::ldmatrix(row.place(), r, 4, true, site);
}
template <class T>
void ldmatrix_x2(uint32_t (&r)[2], Shared<T> row, Site site = Site()) {
  emulator::ldmatrix(row.place(), r, 2, false, site);
}
template <class T>
void ldmatrix_x2_trans(uint32_t (&r)[2], Shared<T> row, Site site = Site()) {
  emulator::ldmatrix(row.place(), r, 2, true, site);
}
template <class T>
void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], Site site = Site()) {
  emulator::mma(d, a, b, 8, kIsHalf<T>, site);
}
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site()) {
  emulator::mma(d, a, b, 16, kIsHalf<T>, site);
}

}  // namespace qformer::cuda::prims
