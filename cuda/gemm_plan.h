// Which kernel a product gets: the tile, how its k-chunks run, the stages of the ring.
//
// How k is cut into chunks depends on (n, k) alone, so the bits of a row do not depend on m. What depends on m and the
// device is only whether the chunks of a tile run as blocks of their own, because there are too few tiles for the
// multiprocessors, or one after the other in one block.
#pragma once

#include "gemm.h"

namespace qformer::cuda {

enum class GemmKernel {
  kLarge,      // 128 × 256: most reuse, one block per multiprocessor; one chunk
  kMedium,     // 128 × 128, one chunk
  kSerial,     // 128 × 128, chunks one after the other
  kTall,       // 128 × 64
  kSmall,      // 64 × 64: most blocks
  kUnaligned,  // 64 × 64, element loads, chunks one after the other
};

struct GemmPlan {
  GemmKernel kernel;
  int32_t k_chunk;
  int32_t chunks;  // blocks per tile of y
  int32_t tiles_m, tiles_n;
  int32_t stages;
  size_t shared_bytes;    // of a block
  size_t partials_bytes;  // workspace
};

// Columns of k that are summed in one go for weights of n rows.
int32_t gemm_k_chunk(int32_t n, int32_t k);
// The same for a product, which may be gated.
int32_t gemm_k_chunk(const GemmArgs& args);

// Rows of x and of the weights begin on 16 bytes, and k % 8 == 0.
bool gemm_is_aligned(const GemmArgs& args);

// What a plan depends on besides the product.
struct GemmDevice {
  int multiprocessors;
  size_t shared_limit;  // bytes of a block, at most
};

// The cheapest plan by estimate, for 16-bit activations.
GemmPlan plan_gemm(const GemmDevice& device, const GemmArgs& args);

// The plan with one given kernel; false where that kernel does not serve the product on this device.
bool plan_kernel(const GemmDevice& device, const GemmArgs& args, GemmKernel kernel, GemmPlan* plan);

QfStatus launch_gemm_f16(DeviceContext& context, const char* name, const GemmArgs& args, const GemmPlan& plan);
QfStatus launch_gemm_bf16(DeviceContext& context, const char* name, const GemmArgs& args, const GemmPlan& plan);

}  // namespace qformer::cuda
