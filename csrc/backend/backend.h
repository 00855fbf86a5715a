// THE backend contract: one C-ABI table of functions per backend, one POD argument struct per op.
//
// Rules every backend keeps and every caller may rely on:
// - Shapes, dtypes and strides were checked by ops/ before a call; a backend checks only what is known on the device
//   (an id out of range, an allocation that fails).
// - Structs are copied byte for byte when a graph is recorded, so they hold pointers and numbers only.
// - Accumulation is in f32. Results do not depend on the other rows of a batch nor on the number of threads: every
// output
//   element has one fixed reduction order, whatever M is.
// - "ld*" and "*_stride" are distances in elements between consecutive rows (tokens); the last axis is always dense.
// - A function returns a QfStatus; on failure it leaves a message for `last_error` on the calling thread.
// - Optional pointers may be null; which ones is said at the field.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_BACKEND_ABI 1

typedef enum QfStatus {
  QF_OK = 0,
  QF_INVALID_ARGUMENT = 1,
  QF_OUT_OF_MEMORY = 2,
  QF_UNSUPPORTED = 3,
  QF_DEVICE_FAULT = 4,
  QF_INTERNAL = 5,
} QfStatus;

typedef enum QfActivation {
  QF_ACT_NONE = 0,
  QF_ACT_GELU_ERF = 1,   // x * 0.5 * (1 + erf(x / sqrt(2)))
  QF_ACT_GELU_TANH = 2,  // tanh approximation ("gelu_new")
  QF_ACT_RELU = 3,
  QF_ACT_SILU = 4,  // x * sigmoid(x)
} QfActivation;

// How the products of a linear op are formed. Both accumulate in f32.
typedef enum QfMath {
  QF_MATH_F32 = 0,   // 16-bit weights are widened exactly, products in f32
  QF_MATH_BF16 = 1,  // x is rounded to bf16 first; needs bf16 weights, otherwise the same as QF_MATH_F32
} QfMath;

// Which keys a query row sees. Row i and key j count from the start of their own sequence.
typedef enum QfMask {
  QF_MASK_FULL = 0,
  QF_MASK_CAUSAL = 1,  // j <= i + (len_k - len_q)
  QF_MASK_ITC = 2,     // the first `num_query` rows and the rest see only themselves (Q-Former, uni-modal)
  QF_MASK_ITG = 3,     // j <= max(i, num_query - 1): text is causal and sees the queries, queries see queries only
} QfMask;

// ---- linear -----------------------------------------------------------------------------------------------------

// y = act(x · wᵀ + bias) + residual
typedef struct QfLinear {
  const void* x;          // [m, k] f32, rows ldx apart
  const void* w;          // [n, k] w_dtype, rows ldw apart
  const float* bias;      // [n] or null
  const float* residual;  // [m, n], rows ldr apart, or null; may equal y
  float* y;               // [m, n], rows ldy apart
  int64_t m, n, k;
  int64_t ldx, ldw, ldr, ldy;
  int32_t x_dtype, w_dtype;  // x: f32; w: f32 | f16 | bf16
  int32_t activation;        // QfActivation
  int32_t math;              // QfMath
} QfLinear;

// y = act(x · w_gateᵀ) * (x · w_upᵀ), the gated feed-forward of LLaMA (SiLU) and T5 (GELU)
typedef struct QfGatedLinear {
  const void* x;       // [m, k] f32
  const void* w_gate;  // [n, k] w_dtype, rows ldw apart
  const void* w_up;    // [n, k] w_dtype, rows ldw apart
  float* y;            // [m, n]
  int64_t m, n, k;
  int64_t ldx, ldw, ldy;
  int32_t x_dtype, w_dtype;
  int32_t activation;
  int32_t math;
} QfGatedLinear;

// ---- norm -------------------------------------------------------------------------------------------------------

// y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis, biased variance, two passes
typedef struct QfLayerNorm {
  const float* x;       // [rows, cols], rows ldx apart
  const float* weight;  // [cols]
  const float* bias;    // [cols]
  float* y;             // [rows, cols] dense
  int64_t rows, cols, ldx;
  float eps;
} QfLayerNorm;

// y = x / sqrt(mean(x²) + eps) * weight over the last axis
typedef struct QfRmsNorm {
  const float* x;       // [rows, cols], rows ldx apart
  const float* weight;  // [cols]
  float* y;             // [rows, cols] dense
  int64_t rows, cols, ldx;
  float eps;
} QfRmsNorm;

// y = softmax(x) or log_softmax(x) over the last axis; -inf entries get 0 (-inf)
typedef struct QfSoftmax {
  const float* x;  // [rows, cols], rows ldx apart
  float* y;        // [rows, cols] dense
  int64_t rows, cols, ldx;
  int32_t log;  // 0: softmax, 1: log_softmax
} QfSoftmax;

// ---- attention --------------------------------------------------------------------------------------------------

// Rotary embedding, rotate-half pairs (j, j + head_dim/2); angle = position * inv_freq[j] in f32
typedef struct QfRope {
  const float* x;            // [tokens, heads, head_dim], tokens x_stride apart
  const int32_t* positions;  // [tokens]
  const float* inv_freq;     // [head_dim / 2]
  float* y;                  // [tokens, heads, head_dim] dense
  int64_t tokens, heads, head_dim, x_stride;
} QfRope;

// o = softmax(scale * q kᵀ + mask) v for packed sequences of different length; head h reads kv head h / (heads /
// kv_heads). A row that sees no key gives zeros.
typedef struct QfAttention {
  const float* q;               // [tokens_q, heads, head_dim], tokens q_stride apart
  const float* k;               // [tokens_k, kv_heads, head_dim], tokens k_stride apart
  const float* v;               // [tokens_k, kv_heads, head_dim], tokens v_stride apart
  float* o;                     // [tokens_q, heads, head_dim] dense
  const int32_t* cu_seqlens_q;  // [batch + 1], first 0, last tokens_q
  const int32_t* cu_seqlens_k;  // [batch + 1], first 0, last tokens_k
  int64_t batch, tokens_q, tokens_k, heads, kv_heads, head_dim;
  int64_t q_stride, k_stride, v_stride;
  float scale;
  int32_t mask;       // QfMask
  int32_t num_query;  // query rows at the head of each sequence, for QF_MASK_ITC and QF_MASK_ITG
} QfAttention;

// Writes the k and v of new tokens into their slots. slot = block * block_size + offset; a negative slot is skipped.
typedef struct QfKvAppend {
  const float* k;               // [tokens, kv_heads, head_dim], tokens k_stride apart
  const float* v;               // [tokens, kv_heads, head_dim], tokens v_stride apart
  void* k_cache;                // [blocks, block_size, kv_heads, head_dim] cache_dtype
  void* v_cache;                // same
  const int32_t* slot_mapping;  // [tokens]
  int64_t tokens, kv_heads, head_dim, k_stride, v_stride, slots;  // slots = blocks * block_size
  int32_t cache_dtype;                                            // f32 | f16 | bf16
} QfKvAppend;

// Causal attention of new tokens over the paged cache (which already holds them): prefill, chunked prefill and decode.
// Row i of a sequence with lq new rows stands at position context_len - lq + i.
typedef struct QfPagedAttention {
  const float* q;               // [tokens, heads, head_dim], tokens q_stride apart
  const void* k_cache;          // [blocks, block_size, kv_heads, head_dim] cache_dtype
  const void* v_cache;          // same
  float* o;                     // [tokens, heads, head_dim] dense
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* block_table;   // [batch, max_blocks]; entries past the context are not read
  const int32_t* context_lens;  // [batch] tokens in the cache, the new ones included
  int64_t batch, tokens, heads, kv_heads, head_dim, q_stride;
  int64_t blocks, block_size, max_blocks;
  float scale;
  int32_t cache_dtype;
} QfPagedAttention;

// ---- tokens -----------------------------------------------------------------------------------------------------

// y[t] = table[ids[t]]; an id outside [0, rows) is QF_INVALID_ARGUMENT. Serves embedding and gather_rows.
typedef struct QfGatherRows {
  const void* table;   // [rows, cols] dtype, rows ld apart
  const int32_t* ids;  // [tokens]
  void* y;             // [tokens, cols] out_dtype dense
  int64_t rows, cols, tokens, ld;
  int32_t dtype, out_dtype;  // f32 | f16 | bf16 → f32, or the same dtype on both sides
} QfGatherRows;

// dst[ids[t]] = src[t]; ids must be distinct; an id outside [0, rows) is QF_INVALID_ARGUMENT
typedef struct QfScatterRows {
  float* dst;          // [rows, cols], rows ldd apart
  const int32_t* ids;  // [tokens]
  const float* src;    // [tokens, cols], rows lds apart
  int64_t rows, cols, tokens, ldd, lds;
} QfScatterRows;

// ---- elementwise ------------------------------------------------------------------------------------------------

typedef enum QfBinary { QF_ADD = 0, QF_SUB = 1, QF_MUL = 2, QF_DIV = 3 } QfBinary;

// y = a op b; b is broadcast over rows where ldb is 0
typedef struct QfBinaryArgs {
  const float* a;  // [rows, cols], rows lda apart
  const float* b;  // [rows, cols], rows ldb apart (0: one row for all)
  float* y;        // [rows, cols] dense
  int64_t rows, cols, lda, ldb;
  int32_t op;  // QfBinary
} QfBinaryArgs;

// y = act(x) * scale + shift
typedef struct QfUnary {
  const float* x;  // [rows, cols], rows ldx apart
  float* y;        // [rows, cols] dense
  int64_t rows, cols, ldx;
  int32_t activation;
  float scale, shift;
} QfUnary;

// Strided copy with conversion. Float dtypes convert into each other (round to nearest even); i32 and u8 only copy.
typedef struct QfCopy {
  const void* x;
  void* y;
  int64_t shape[4];      // leading axes are 1 where unused
  int64_t x_strides[4];  // elements
  int64_t y_strides[4];  // elements
  int32_t x_dtype, y_dtype;
} QfCopy;

// ---- image ------------------------------------------------------------------------------------------------------

// Pillow's BICUBIC resize, bit for bit: a = -0.5, support widened when shrinking, horizontal then vertical pass, each
// rounded to u8, 22-bit fixed-point coefficients.
typedef struct QfResizeBicubic {
  const uint8_t* x;  // [height, width, 3]
  uint8_t* y;        // [out_height, out_width, 3]
  int64_t height, width, out_height, out_width;
} QfResizeBicubic;

// y = (float(double(x) * rescale) - mean) / std, HWC u8 → CHW f32
typedef struct QfNormalizeImage {
  const uint8_t* x;  // [height, width, 3]
  float* y;          // [3, height, width]
  int64_t height, width;
  double rescale;
  float mean[3], std[3];
} QfNormalizeImage;

// Patch convolution (stride = patch), class token in front, positions added: the ViT's input.
typedef struct QfPatchEmbedding {
  const float* x;                // [batch, channels, height, width]
  const void* w;                 // [dim, channels, patch, patch] w_dtype
  const float* bias;             // [dim] or null
  const float* class_embedding;  // [dim]
  const float* positions;        // [1 + grid_h * grid_w, dim]
  float* y;                      // [batch * (1 + grid_h * grid_w), dim]
  int64_t batch, channels, height, width, patch, dim;
  int32_t w_dtype;
  int32_t math;
} QfPatchEmbedding;

// ---- sampling ---------------------------------------------------------------------------------------------------

// In place, per row b: repetition penalty on every distinct id of the history (score < 0 ? score * p : score / p), then
// -inf for the banned ids. Ids outside the vocabulary are ignored.
typedef struct QfPenalizeLogits {
  float* logits;                    // [batch, vocab] dense
  const int32_t* history;           // [cu_history[batch]]
  const int32_t* cu_history;        // [batch + 1]
  const int32_t* banned;            // [cu_banned[batch]]
  const int32_t* cu_banned;         // [batch + 1]
  const float* repetition_penalty;  // [batch], 1: off
  int64_t batch, vocab;
  int64_t history_len, banned_len;  // elements; offsets beyond them are QF_INVALID_ARGUMENT
} QfPenalizeLogits;

// scores = logits / temperature, then top-k (ties kept), top-p, min-p: dropped entries become -inf.
// temperature 0 means greedy and leaves the row as it is.
typedef struct QfWarpLogits {
  const float* logits;       // [batch, vocab] dense
  float* scores;             // [batch, vocab] dense, may equal logits
  const float* temperature;  // [batch]
  const int32_t* top_k;      // [batch], 0: off
  const float* top_p;        // [batch], 1: off
  const float* min_p;        // [batch], 0: off
  int64_t batch, vocab;
} QfWarpLogits;

// One token per row from the warped scores: the arg max (lowest id on ties) where temperature is 0, else inverse CDF in
// id order at u = philox4x32-10(key = seed, counter = step). A row with a NaN, with +inf (an overflow upstream) or
// without a finite score gives id -1.
typedef struct QfSample {
  const float* scores;       // [batch, vocab] dense
  const float* temperature;  // [batch]
  const int32_t* seed;       // [batch, 2] low and high word
  const int32_t* step;       // [batch]
  int32_t* ids;              // [batch]
  int64_t batch, vocab;
} QfSample;

// The k largest entries per row in descending order (lowest id first among equals).
typedef struct QfTopK {
  const float* x;  // [rows, cols] dense
  float* values;   // [rows, k]
  int32_t* ids;    // [rows, k]
  int64_t rows, cols, k;
} QfTopK;

// ---- lora -------------------------------------------------------------------------------------------------------

// y = w + scaling * b · a, in f32, rounded once to w_dtype
typedef struct QfLoraMerge {
  const void* w;   // [out, in] w_dtype dense
  const float* a;  // [rank, in]
  const float* b;  // [out, rank]
  void* y;         // [out, in] w_dtype dense, may equal w
  int64_t out, in, rank;
  float scaling;
  int32_t w_dtype;
} QfLoraMerge;

// ---- the table --------------------------------------------------------------------------------------------------

typedef struct QfDeviceInfo {
  char name[128];       // "AMD EPYC … (avx512bf16)", "NVIDIA H100 …"
  char level[32];       // instruction set or compute capability in use: "avx512bf16", "sm_90"
  int64_t memory;       // bytes, total
  int64_t free_memory;  // bytes, now
  int32_t threads;      // CPU: threads of the pool
} QfDeviceInfo;

typedef struct QfBackend {
  uint32_t abi;   // QF_BACKEND_ABI
  uint32_t size;  // sizeof(QfBackend)
  const char* name;

  int32_t (*device_count)(void);
  QfStatus (*device_info)(int32_t device, QfDeviceInfo* info);
  const char* (*last_error)(void);

  // 64-byte aligned at least. On QF_OUT_OF_MEMORY the message says what was asked for and what was free.
  QfStatus (*alloc)(int32_t device, size_t bytes, void** out);
  void (*free)(int32_t device, void* ptr, size_t bytes);
  QfStatus (*upload)(int32_t device, void* dst, const void* src, size_t bytes);
  QfStatus (*download)(int32_t device, void* dst, const void* src, size_t bytes);
  QfStatus (*fill_zero)(int32_t device, void* dst, size_t bytes);
  QfStatus (*synchronize)(int32_t device);
  // 1 where kernels read host memory directly, so that mapped weights are used in place
  int32_t host_memory;

#define QF_OPS(X)                      \
  X(linear, QfLinear)                  \
  X(gated_linear, QfGatedLinear)       \
  X(layer_norm, QfLayerNorm)           \
  X(rms_norm, QfRmsNorm)               \
  X(softmax, QfSoftmax)                \
  X(rope, QfRope)                      \
  X(attention, QfAttention)            \
  X(kv_append, QfKvAppend)             \
  X(paged_attention, QfPagedAttention) \
  X(gather_rows, QfGatherRows)         \
  X(scatter_rows, QfScatterRows)       \
  X(binary, QfBinaryArgs)              \
  X(unary, QfUnary)                    \
  X(copy, QfCopy)                      \
  X(resize_bicubic, QfResizeBicubic)   \
  X(normalize_image, QfNormalizeImage) \
  X(patch_embedding, QfPatchEmbedding) \
  X(penalize_logits, QfPenalizeLogits) \
  X(warp_logits, QfWarpLogits)         \
  X(sample, QfSample)                  \
  X(top_k, QfTopK)                     \
  X(lora_merge, QfLoraMerge)

#define QF_DECLARE_OP(name, Args) QfStatus (*name)(int32_t device, const Args* args);
  QF_OPS(QF_DECLARE_OP)
#undef QF_DECLARE_OP
} QfBackend;

#ifdef __cplusplus
}
#endif
