// How the tokens (rows of x) of a decode product reach its kernel, decided on the host.
//
// Three ways: read in place; normalised by every block into its shared memory (few tokens, so that a decode layer needs
// no launch for its norms); or normalised, respectively copied to aligned rows, into workspace by one small kernel. The
// last two run the same code over a row and give the same bits.
#pragma once

#include "runtime/device.h"

namespace qformer::cuda {

// Part of a kernel's parameters.
struct DecodeTokens {
  const void* x;             // [m, k] dtype, rows ldx apart
  const float* norm_weight;  // [k] or null
  int64_t ldx;
  int32_t m, k;
  float norm_eps;
};

// True where blocks can normalise the tokens themselves.
bool tokens_are_staged(const DecodeTokens& tokens, int32_t dtype);

// Bytes of workspace that prepare_tokens needs; 0 where it has nothing to do.
size_t prepared_tokens_bytes(const DecodeTokens& tokens, int32_t dtype);

// Makes the tokens ones that a kernel reads in place: rows on 16 bytes, zeros up to a multiple of 8 columns, no norm.
QfStatus prepare_tokens(DeviceContext& context, const char* name, int32_t dtype, DecodeTokens* tokens, void* workspace);

// The same with the context's scratch as workspace.
QfStatus prepare_tokens(DeviceContext& context, const char* name, int32_t dtype, DecodeTokens* tokens);

}  // namespace qformer::cuda
