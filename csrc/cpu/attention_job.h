// What one attention kernel call works on: some consecutive query tokens of one sequence and one kv head, with all the
// query heads that share it. A "row" is one (token, head) pair: row r is token r / group, head r % group of the job.
#pragma once

#include <stdint.h>

namespace qformer::cpu {

// Keys per step of the online softmax, at absolute multiples of it; of bf16 products kTileKeyBlock.
inline constexpr int64_t kKeyBlock = 64, kTileKeyBlock = 512;

// Most rows of one job, unless one token alone has more: all of a picture of 257 patches.
inline constexpr int64_t kJobRows = 272;

// In place of the first key with a value that is not finite.
inline constexpr int64_t kAllFinite = INT64_MAX;

// Tokens [first_token, last_token) see the same first key; the last one may differ per token.
struct AttentionJob {
  const float* q;  // token 0, first head of the job; tokens q_stride apart, heads head_dim apart
  float* o;        // same, tokens o_stride apart
  int64_t q_stride, o_stride;
  int64_t tokens, group, head_dim;
  int64_t first_key;          // of every token
  const int32_t* key_limits;  // [tokens] one past the last key, not falling from token to token

  // Key j is row `slot(j) * stride` (elements) of k and v; slot(j) = j where block_table is null,
  // block_table[j / block_size] * block_size + j % block_size otherwise.
  const void* k;
  const void* v;
  int64_t k_stride, v_stride;
  const int32_t* block_table;
  int64_t block_size;
  int32_t dtype;  // f32 | f16 | bf16

  float scale;

  // Added to the scores, or null: token t and head h of the job add bias[h][clamp(j - (position + t) + bias_origin, 0,
  // bias_span - 1)] to their score with key j.
  const float* bias;
  int64_t bias_span, bias_origin;
  int64_t position;  // of token 0 among the keys
};

// Bytes of working memory a job of `rows` rows needs; every part is a multiple of 64 bytes.
inline int64_t attention_workspace_bytes(int64_t rows, int64_t head_dim) {
  const int64_t padded = (head_dim + 15) / 16 * 16;
  return 4 * (2 * padded * kKeyBlock + rows * (2 * padded + 2)) + 8 * 64;
}

// The same of bf16 products.
inline int64_t bf16_attention_workspace_bytes(int64_t rows, int64_t head_dim) {
  constexpr int64_t kTile = 1024;
  const int64_t row_tiles = (rows + 15) / 16, steps = (head_dim + 31) / 32, tiles = (head_dim + 15) / 16;
  const int64_t block = kTileKeyBlock / 16 * (steps + 1) + kTileKeyBlock / 32 * (tiles + 1);
  return kTile * (block + row_tiles * (steps + tiles)) + 2 * row_tiles * 64;
}

}  // namespace qformer::cpu
