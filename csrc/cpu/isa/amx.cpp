// The tile kernels for x86-64 with AMX (AMX-TILE, AMX-BF16). The other kernels of this level are those of
// avx512bf16.
#if defined(__x86_64__)

#define QF_ISA amx
#define QF_ISA_AVX512 1
#include "../attention_bf16.h"
#include "../linear_amx.h"

namespace qformer::cpu {
extern const TileKernels tile_kernels_amx;
int64_t bf16_attention_amx(const AttentionJob& job, float* workspace);
const TileKernels tile_kernels_amx = amx::kTileKernels;
int64_t bf16_attention_amx(const AttentionJob& job, float* workspace) { return amx::bf16_attention(job, workspace); }
}  // namespace qformer::cpu

#endif
