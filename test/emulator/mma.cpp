// The arithmetic of mma and the data movement of ldmatrix, done for a whole warp by its last lane.
//
// The product runs on vectors of eight columns (GCC vector extensions), with AVX2 + F16C where the processor has them:
// about 0.2 µs for m16n8k16.
#include "prims/mma.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qformer::emulator {
namespace {

typedef float Row __attribute__((vector_size(32)));  // eight columns of B or C

struct Tiles {
  float a[16][16];
  alignas(32) float b[16][8];
  alignas(32) float c[16][8];
};

using cuda::prims::bit_cast;

float widen(uint32_t half_bits, bool is_half) {
  return is_half ? to_float(cuda::prims::Half{static_cast<uint16_t>(half_bits)}) : bit_cast<float>(half_bits << 16);
}

// Both halves of each register as floats, in order.
inline void widen_registers(const uint32_t* registers, int count, bool is_half, float* out) {
  for (int i = 0; i < count; ++i) {
    out[2 * i] = widen(registers[i] & 0xffffu, is_half);
    out[2 * i + 1] = widen(registers[i] >> 16, is_half);
  }
}

inline void gather_c(MmaLane** lanes, Tiles& tiles) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    memcpy(&tiles.c[g][2 * t], lanes[lane]->d, 8);
    memcpy(&tiles.c[g + 8][2 * t], lanes[lane]->d + 2, 8);
  }
}

inline void scatter_c(MmaLane** lanes, const Tiles& tiles) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    memcpy(lanes[lane]->d, &tiles.c[g][2 * t], 8);
    memcpy(lanes[lane]->d + 2, &tiles.c[g + 8][2 * t], 8);
  }
}

// `values`: A's registers of one lane, widened, 2 per register.
inline void place_a(const float* values, int lane, int k, Tiles& tiles) {
  const int g = lane / 4, t = lane % 4;
  for (int r = 0; r < k / 4; ++r) memcpy(&tiles.a[g + 8 * (r % 2)][2 * t + 8 * (r / 2)], values + 2 * r, 8);
}

inline void place_b(const float* values, int lane, int k, Tiles& tiles) {
  const int g = lane / 4, t = lane % 4;
  for (int r = 0; r < k / 8; ++r) {
    tiles.b[2 * t + 8 * r][g] = values[2 * r];
    tiles.b[2 * t + 8 * r + 1][g] = values[2 * r + 1];
  }
}

void multiply_portable(MmaLane** lanes, int k, bool is_half) {
  Tiles tiles;
  float values[8];
  for (int lane = 0; lane < 32; ++lane) {
    widen_registers(lanes[lane]->a, k / 4, is_half, values);
    place_a(values, lane, k, tiles);
    widen_registers(lanes[lane]->b, k / 8, is_half, values);
    place_b(values, lane, k, tiles);
  }
  gather_c(lanes, tiles);
  for (int row = 0; row < 16; ++row) {
    Row sum;
    memcpy(&sum, tiles.c[row], 32);
    for (int i = 0; i < k; ++i) {
      Row b;
      memcpy(&b, tiles.b[i], 32);
      sum += tiles.a[row][i] * b;  // the product is exact: fused or not gives the same bits
    }
    memcpy(tiles.c[row], &sum, 32);
  }
  scatter_c(lanes, tiles);
}

#if defined(__x86_64__)

__attribute__((target("avx2,fma,f16c"))) inline __m256 widen8(__m128i packed, bool is_half) {
  if (is_half) return _mm256_cvtph_ps(packed);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16));
}

__attribute__((target("avx2,fma,f16c"))) void multiply_avx2(MmaLane** lanes, int k, bool is_half) {
  Tiles tiles;
  alignas(32) float values[8];
  for (int lane = 0; lane < 32; ++lane) {
    __m128i a = _mm_setzero_si128(), b = a;
    if (k == 16) {
      a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes[lane]->a));
      b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes[lane]->b));
    } else {
      a = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes[lane]->a));
      b = _mm_cvtsi32_si128(static_cast<int>(lanes[lane]->b[0]));
    }
    _mm256_store_ps(values, widen8(a, is_half));
    place_a(values, lane, k, tiles);
    _mm256_store_ps(values, widen8(b, is_half));
    place_b(values, lane, k, tiles);
  }
  gather_c(lanes, tiles);
  for (int row = 0; row < 16; row += 8) {
    __m256 sum[8];
    for (int i = 0; i < 8; ++i) sum[i] = _mm256_load_ps(tiles.c[row + i]);
    for (int j = 0; j < k; ++j) {
      const __m256 b = _mm256_load_ps(tiles.b[j]);
      for (int i = 0; i < 8; ++i) sum[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(&tiles.a[row + i][j]), b, sum[i]);
    }
    for (int i = 0; i < 8; ++i) _mm256_store_ps(tiles.c[row + i], sum[i]);
  }
  scatter_c(lanes, tiles);
}

#endif

void (*choose_multiply())(MmaLane**, int, bool) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return multiply_avx2;
#endif
  return multiply_portable;
}

void (*const multiply)(MmaLane**, int, bool) = choose_multiply();

#ifdef QF_EMULATOR_UNCHECKED

inline void read_rows(LdmatrixLane** lanes, uint32_t first, uint16_t (&matrix)[8][8], Site) {
  for (uint32_t i = 0; i < 8; ++i) memcpy(matrix[i], lanes[first + i]->row.address, 16);
}

#else

// Each row is checked as the read of the lane that names it.
void read_rows(LdmatrixLane** lanes, uint32_t first, uint16_t (&matrix)[8][8], Site site) {
  Fiber* const executing = machine.current;
  uint32_t offsets[8];
  for (uint32_t i = 0; i < 8; ++i) {
    const SharedPlace& row = lanes[first + i]->row;
    machine.current = executing->warp->lanes + first + i;
    const uint8_t* p = check_shared(row, 16, "ldmatrix", site);
    offsets[i] = static_cast<uint32_t>(row.offset);
    on_shared_read(offsets[i], 16, site);
    memcpy(matrix[i], p, 16);
  }
  machine.current = executing;
  if (machine.count_banks) count_phase(offsets, 8, 16);
}

#endif

// Row addresses come from lanes 8j … 8j + 7.
void load_matrices(LdmatrixLane** lanes, uint32_t count, bool transposed, Site site) {
  uint16_t matrix[8][8];
  for (uint32_t j = 0; j < count; ++j) {
    read_rows(lanes, 8 * j, matrix, site);
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t g = lane / 4, t = lane % 4;
      const uint32_t lo = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t hi = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      lanes[lane]->registers[j] = hi << 16 | lo;
    }
  }
}

}  // namespace

void ldmatrix(SharedPlace row, uint32_t* registers, uint32_t count, bool transposed, Site site) {
  LdmatrixLane mine{row, registers};
  meet("ldmatrix", kAllLanes, mine, site, [=](LdmatrixLane** lanes) { load_matrices(lanes, count, transposed, site); });
}

void mma(float* d, const uint32_t* a, const uint32_t* b, int k, bool is_half, Site site) {
  if (!is_half && machine.arch < 80)
    kernel_fault(FaultKind::kUnsupported, site, "mma of bf16 does not exist on sm_%d", machine.arch);
  MmaLane mine{d, a, b};
  meet("mma", kAllLanes, mine, site, [=](MmaLane** lanes) {
    ++machine.counters.mma;
    multiply(lanes, k, is_half);
  });
}

}  // namespace qformer::emulator
