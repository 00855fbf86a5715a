// y = epilogue(x · wᵀ): the one description of a matrix product that linear, gated_linear and patch_embedding fill in,
// and the launch that picks a kernel for it.
//
// 16-bit activations run on tensor cores, few rows by decode.cu and more by gemm_kernel.cuh; f32 ones on FMAs
// (gemm_f32.cu). The bits of an output element depend on its own row, its weights and (n, k) alone: never on m, the
// kernel, the tile shape or the device's size.
#pragma once

#include "runtime/device.h"

namespace qformer::cuda {

// A kernel parameter: pointers and numbers only.
struct GemmArgs {
  const void* x;             // [m, k] dtype, rows ldx apart
  const void* w;             // [n, k] w_dtype, rows ldw apart
  const void* w_up;          // the second matrix of a gated product, rows ldw apart, or null
  const float* bias;         // [n] or null
  const void* residual;      // rows ldr apart, or null
  const float* norm_weight;  // [k] where gemm_normalises said so, else null
  void* y;                   // rows ldy apart
  int64_t ldx, ldw, ldr, ldy;
  int32_t m, n, k;
  int32_t activation;
  int32_t y_f32, residual_f32;  // 1: f32, 0: the activations' dtype
  // Patch embedding: > 0 puts row r at r + r / row_period + 1 of y (a class token stands before each image) and adds
  // row r % row_period + 1 of the residual. 0: row r of both.
  int32_t row_period;
  int32_t round_x_to_bf16;  // QF_MATH_BF16; f32 activations only
  int32_t w_rows;           // > 0: w is part of a matrix of so many rows and keeps its order of summation
  float norm_eps;

  // Filled in by the launch.
  int32_t tiles_m, tiles_n;
  int32_t k_chunk;           // columns of k summed in one go; chunks are added in ascending order
  int32_t stages;            // of the shared-memory ring
  int32_t y_vectors;         // y takes 16-byte stores
  int32_t bias_vectors;      // bias takes 16-byte loads
  int32_t residual_vectors;  // residual takes 16-byte loads
  float* partials;           // [chunks, tiles, tile elements] when chunks run as blocks of their own
  uint32_t* tickets;         // [tiles], zero before and after
};

// QF_UNSUPPORTED for sizes past the kernels' 32-bit arithmetic.
QfStatus check_gemm_sizes(const char* name, int64_t m, int64_t n, int64_t k);

// True where the kernel that run_gemm picks normalises the rows itself, with args.norm_weight and the bits of rms_norm.
bool gemm_normalises(const DeviceContext& context, const GemmArgs& args, int32_t dtype);

// Bytes of workspace that run_gemm wants for this product.
size_t gemm_workspace(const DeviceContext& context, const GemmArgs& args, int32_t dtype);

// What every kernel wants first: refuses what the device does not support, fills in the vector fields.
QfStatus prepare_gemm(const DeviceContext& context, const char* name, GemmArgs* args, int32_t dtype);

// Puts the product on the context's stream. `dtype` is that of x, `w_dtype` that of the weights (equal where dtype is
// 16 bits). `workspace`: gemm_workspace bytes of the op's scratch, 16-byte aligned. `name` is the op's, for messages.
QfStatus run_gemm(DeviceContext& context, const char* name, GemmArgs args, int32_t dtype, int32_t w_dtype,
                  void* workspace);

}  // namespace qformer::cuda
