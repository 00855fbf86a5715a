// The kernels for x86-64 with AVX-512 and its BF16 dot product; also the table of the level amx, which adds tiles.
#if defined(__x86_64__)

#define QF_ISA avx512bf16
#define QF_ISA_AVX512 1
#define QF_ISA_BF16_DOT 1
#define QF_LEVEL "avx512bf16"
#include "../attention_bf16.h"
#include "../kernel_set.h"

namespace qformer::cpu {

extern const TileKernels tile_kernels_amx;
int64_t bf16_attention_amx(const AttentionJob& job, float* workspace);
extern const CpuKernels kernels_avx512bf16, kernels_amx;

static constexpr CpuKernels with_tiles(CpuKernels table) {
  table.level = "amx";
  table.linear.bf16_tiles = &tile_kernels_amx;
  table.attention.run_bf16 = &bf16_attention_amx;
  return table;
}

static constexpr CpuKernels with_bf16_attention(CpuKernels table) {
  table.attention.run_bf16 = &avx512bf16::bf16_attention;
  return table;
}

constinit const CpuKernels kernels_avx512bf16 = with_bf16_attention(avx512bf16::kKernels);
constinit const CpuKernels kernels_amx = with_tiles(avx512bf16::kKernels);

}  // namespace qformer::cpu

#endif
