// THE backend contract: one C-ABI table of functions per backend, one POD argument struct per op.
// Long because: the whole contract is read in one place.
//
// Rules every backend keeps and every caller may rely on:
// - Shapes, dtypes and strides were checked by ops/ before a call; a backend checks only what is known on the device
//   (an id out of range, an allocation that fails).
// - Structs are copied byte for byte when a graph is recorded, so they hold pointers and numbers only.
// - Accumulation is in f32. Results do not depend on the other rows of a batch nor on the number of threads: every
//   output element has one fixed reduction order, whatever M is.
// - "activation" tensors have one dtype per call, named by the field `dtype`: f32 on every backend, f16 and bf16 where
//   the device computes in them (QfBackend.activation_dtypes). An op whose dtype a backend lacks returns
//   QF_UNSUPPORTED. Weights of norms, biases, pixels and logits are f32 always.
// - A backend may run asynchronously: what it finds on the device (an id out of range) is then reported by the next
//   download or synchronize.
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

#define QF_BACKEND_ABI 5

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

// How the products of linear ops and of attention are formed. Both accumulate in f32.
typedef enum QfMath {
  QF_MATH_F32 = 0,  // 16-bit weights are widened exactly, products in f32
  // Linear ops: x is rounded to bf16 first; needs bf16 weights, otherwise the same as QF_MATH_F32. Attention: q, k, v
  // and the softmax weights may be rounded to bf16, where that is faster.
  QF_MATH_BF16 = 1,
  // quant_linear: x may be rounded to 8 bits with a scale for each 64 columns, where that is faster.
  QF_MATH_INT8 = 2,
} QfMath;

// Which keys a query row sees. Row i and key j count from the start of their own sequence.
typedef enum QfMask {
  QF_MASK_FULL = 0,
  QF_MASK_CAUSAL = 1,  // j <= i + (len_k - len_q)
  QF_MASK_ITC = 2,     // the first `num_query` rows and the rest see only themselves (Q-Former, uni-modal)
  QF_MASK_ITG = 3,     // j <= max(i, num_query - 1): text is causal and sees the queries, queries see queries only
} QfMask;

// ---- linear -----------------------------------------------------------------------------------------------------

// y = act(n(x) · wᵀ + bias) + residual, n(x) = x / sqrt(mean(x²) + norm_eps) * norm_weight where norm_weight is given
// (rounded to dtype, as rms_norm would have stored it), else x
typedef struct QfLinear {
  const void* x;             // [m, k] dtype, rows ldx apart
  const void* w;             // [n, k] w_dtype, rows ldw apart
  const float* bias;         // [n] or null
  const void* residual;      // [m, n] y_dtype, rows ldr apart, or null; may equal y
  const float* norm_weight;  // [k] or null
  void* y;                   // [m, n] y_dtype, rows ldy apart
  int64_t m, n, k;
  int64_t ldx, ldw, ldr, ldy;
  float norm_eps;
  int32_t dtype;       // f32 | f16 | bf16
  int32_t w_dtype;     // dtype f32: f32 | f16 | bf16; dtype f16, bf16: the same
  int32_t y_dtype;     // dtype or f32
  int32_t activation;  // QfActivation
  int32_t math;        // QfMath; dtype f32 only
} QfLinear;

// y = act(n(x) · w_gateᵀ) * (n(x) · w_upᵀ), the gated feed-forward of LLaMA (SiLU) and T5 (GELU); n as in QfLinear
typedef struct QfGatedLinear {
  const void* x;             // [m, k] dtype
  const void* w_gate;        // [n, k] w_dtype, rows ldw apart
  const void* w_up;          // [n, k] w_dtype, rows ldw apart
  const float* norm_weight;  // [k] or null
  void* y;                   // [m, n] dtype
  int64_t m, n, k;
  int64_t ldx, ldw, ldy;
  float norm_eps;
  int32_t dtype, w_dtype;  // as in QfLinear
  int32_t activation;
  int32_t math;
} QfGatedLinear;

// The front half of a decoder layer's attention: q = rope(n(x) · wqᵀ), and rope(n(x) · wkᵀ), n(x) · wvᵀ into their
// cache slots. Equal to rms_norm, three times linear, rope and kv_append, rounding to dtype after each.
typedef struct QfQkvAppend {
  const void* x;                // [m, k] dtype, rows ldx apart
  const float* norm_weight;     // [k]
  const void* wq;               // [heads * head_dim, k] w_dtype dense
  const void* wk;               // [kv_heads * head_dim, k] w_dtype dense
  const void* wv;               // same
  const int32_t* positions;     // [m]
  const float* inv_freq;        // [head_dim / 2]
  const int32_t* slot_mapping;  // [m]; negative: skipped
  void* q;                      // [m, heads, head_dim] dtype dense
  void* k_cache;                // [slots, kv_heads, head_dim] cache_dtype
  void* v_cache;                // same
  int64_t m, k, ldx, heads, kv_heads, head_dim, slots;
  float norm_eps;
  int32_t dtype, w_dtype, cache_dtype;
  int32_t math;
} QfQkvAppend;

// Symmetric weight-only quantisation: w ≈ q * scale, one scale per row and group of `group` columns: scale = max|w| / L
// in f32 with L = 127 or 7, rounded up to bf16, so that no level leaves [-L, L]; q = w / scale rounded to nearest even,
// clamped to [-L, L]; q = 0 where scale is 0. NaN is no magnitude and has level 0; infinity makes the scale infinite
// and every level of its group 0.
//
// How q and scales are laid out is the backend's own affair: quant_linear of the same backend alone reads them. On CUDA
// and, where group is no multiple of 64, on the CPU columns lie in order: int8 as two's complement, int4 two to a byte,
// the even one in the low half, each stored as q + 8. Else see cpu/quant_layout.h.
typedef struct QfQuantize {
  const void* w;             // [n, k] w_dtype, rows ldw apart
  uint8_t* q;                // [n, k * bits / 8]
  uint16_t* scales;          // [n, k / group] bf16
  int64_t n, k, ldw, group;  // k % group == 0; group even
  int32_t w_dtype, bits;     // bits: 8 | 4
} QfQuantize;

// y = act(n(x) · wᵀ + bias) + residual with w as QfQuantize stores it; n as in QfLinear
typedef struct QfQuantLinear {
  const void* x;             // [m, k] dtype, rows ldx apart
  const uint8_t* q;          // [n, k * bits / 8]
  const uint16_t* scales;    // [n, k / group] bf16
  const float* bias;         // [n] or null
  const void* residual;      // [m, n] y_dtype, rows ldr apart, or null
  const float* norm_weight;  // [k] or null
  void* y;                   // [m, n] y_dtype, rows ldy apart
  int64_t m, n, k, group;
  int64_t ldx, ldr, ldy;
  float norm_eps;
  int32_t dtype, y_dtype, bits, activation;
  int32_t math;  // QF_MATH_F32 | QF_MATH_INT8
} QfQuantLinear;

// ---- norm -------------------------------------------------------------------------------------------------------

// y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis, biased variance, two passes
typedef struct QfLayerNorm {
  const void* x;        // [rows, cols] dtype, rows ldx apart
  const float* weight;  // [cols]
  const float* bias;    // [cols]
  void* y;              // [rows, cols] dtype dense
  int64_t rows, cols, ldx;
  float eps;
  int32_t dtype;
} QfLayerNorm;

// y = x / sqrt(mean(x²) + eps) * weight over the last axis
typedef struct QfRmsNorm {
  const void* x;        // [rows, cols] dtype, rows ldx apart
  const float* weight;  // [cols]
  void* y;              // [rows, cols] dtype dense
  int64_t rows, cols, ldx;
  float eps;
  int32_t dtype;
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
  const void* x;             // [tokens, heads, head_dim] dtype, tokens x_stride apart
  const int32_t* positions;  // [tokens]
  const float* inv_freq;     // [head_dim / 2]
  void* y;                   // [tokens, heads, head_dim] dtype dense
  int64_t tokens, heads, head_dim, x_stride;
  int32_t dtype;
} QfRope;

// o = softmax(scale * q kᵀ + bias + mask) v for packed sequences of different length; head h reads kv head h / (heads /
// kv_heads). A row that sees no key gives zeros. The bias (T5's relative positions) goes by distance: the query at
// position p and key j add bias[h][clamp(j - p + bias_origin, 0, bias_span - 1)]; row i of len_q stands at position i +
// len_k - len_q.
typedef struct QfAttention {
  const void* q;                // [tokens_q, heads, head_dim] dtype, tokens q_stride apart
  const void* k;                // [tokens_k, kv_heads, head_dim] dtype, tokens k_stride apart
  const void* v;                // [tokens_k, kv_heads, head_dim] dtype, tokens v_stride apart
  const float* bias;            // [heads, bias_span] or null
  void* o;                      // [tokens_q, heads, head_dim] dtype dense
  const int32_t* cu_seqlens_q;  // [batch + 1], first 0, last tokens_q
  const int32_t* cu_seqlens_k;  // [batch + 1], first 0, last tokens_k
  int64_t batch, tokens_q, tokens_k, heads, kv_heads, head_dim;
  int64_t q_stride, k_stride, v_stride;
  int64_t bias_span, bias_origin;  // 0 <= bias_origin < bias_span
  float scale;
  int32_t dtype;
  int32_t mask;       // QfMask
  int32_t num_query;  // query rows at the head of each sequence, for QF_MASK_ITC and QF_MASK_ITG
  int32_t math;       // QfMath; dtype f32 only
} QfAttention;

// Writes the k and v of new tokens into their slots. slot = block * block_size + offset; a negative slot is skipped.
typedef struct QfKvAppend {
  const void* k;                // [tokens, kv_heads, head_dim] dtype, tokens k_stride apart
  const void* v;                // [tokens, kv_heads, head_dim] dtype, tokens v_stride apart
  void* k_cache;                // [blocks, block_size, kv_heads, head_dim] cache_dtype
  void* v_cache;                // same
  const int32_t* slot_mapping;  // [tokens]
  int64_t tokens, kv_heads, head_dim, k_stride, v_stride, slots;  // slots = blocks * block_size
  int32_t dtype, cache_dtype;                                     // f32 | f16 | bf16
} QfKvAppend;

// Causal attention of new tokens over the paged cache (which already holds them): prefill, chunked prefill and decode.
// Row i of a sequence with lq new rows stands at position context_len - lq + i. The bias is that of QfAttention.
typedef struct QfPagedAttention {
  const void* q;                // [tokens, heads, head_dim] dtype, tokens q_stride apart
  const void* k_cache;          // [blocks, block_size, kv_heads, head_dim] cache_dtype
  const void* v_cache;          // same
  const float* bias;            // [heads, bias_span] or null
  void* o;                      // [tokens, heads, head_dim] dtype dense
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* block_table;   // [batch, max_blocks]; entries past the context are not read
  const int32_t* context_lens;  // [batch] tokens in the cache, the new ones included
  int64_t batch, tokens, heads, kv_heads, head_dim, q_stride;
  int64_t blocks, block_size, max_blocks;
  int64_t bias_span, bias_origin;
  float scale;
  int32_t dtype, cache_dtype;
  int32_t math;  // QfMath; dtype f32 only
} QfPagedAttention;

// One cross-attention block of the Q-Former (post-norm): y = layer_norm(x + (attention(x · wqᵀ + bq, k, v)) · woᵀ +
// bo). k and v come from one product of the image features with the weights of all cross layers, so they are strided
// views. Every sequence has rows_per_batch rows; only the first num_query of each attend, the others are copied.
typedef struct QfQFormerCrossAttention {
  const void* x;             // [batch * rows_per_batch, heads * head_dim] dtype dense
  const void* wq;            // [heads * head_dim, heads * head_dim] w_dtype dense
  const float* bq;           // [heads * head_dim]
  const void* k;             // [batch * keys, heads, head_dim] dtype, rows kv_stride apart
  const void* v;             // same
  const void* wo;            // [heads * head_dim, heads * head_dim] w_dtype dense
  const float* bo;           // [heads * head_dim]
  const float* norm_weight;  // [heads * head_dim]
  const float* norm_bias;    // [heads * head_dim]
  void* y;                   // like x
  int64_t batch, rows_per_batch, num_query, keys, heads, head_dim, kv_stride;
  float scale, norm_eps;
  int32_t dtype, w_dtype;
  int32_t math;
} QfQFormerCrossAttention;

// ---- tokens -----------------------------------------------------------------------------------------------------

// y[t] = table[ids[t]]; an id outside [0, rows) is QF_INVALID_ARGUMENT. Serves embedding and gather_rows.
typedef struct QfGatherRows {
  const void* table;   // [rows, cols] dtype, rows ld apart
  const int32_t* ids;  // [tokens]
  void* y;             // [tokens, cols] out_dtype dense
  int64_t rows, cols, tokens, ld;
  int32_t dtype, out_dtype;  // f32 | f16 | bf16 on either side
} QfGatherRows;

// dst[ids[t]] = src[t]; ids must be distinct; an id outside [0, rows) is QF_INVALID_ARGUMENT
typedef struct QfScatterRows {
  void* dst;           // [rows, cols] dtype, rows ldd apart
  const int32_t* ids;  // [tokens]
  const void* src;     // [tokens, cols] dtype, rows lds apart
  int64_t rows, cols, tokens, ldd, lds;
  int32_t dtype;  // f32 | f16 | bf16
} QfScatterRows;

// ---- elementwise ------------------------------------------------------------------------------------------------

typedef enum QfBinary { QF_ADD = 0, QF_SUB = 1, QF_MUL = 2, QF_DIV = 3 } QfBinary;

// y = a op b; b is broadcast over rows where ldb is 0
typedef struct QfBinaryArgs {
  const void* a;  // [rows, cols] dtype, rows lda apart
  const void* b;  // [rows, cols] dtype, rows ldb apart (0: one row for all)
  void* y;        // [rows, cols] dtype dense
  int64_t rows, cols, lda, ldb;
  int32_t op;  // QfBinary
  int32_t dtype;
} QfBinaryArgs;

// y = act(x) * scale + shift
typedef struct QfUnary {
  const void* x;  // [rows, cols] dtype, rows ldx apart
  void* y;        // [rows, cols] dtype dense
  int64_t rows, cols, ldx;
  int32_t activation;
  int32_t dtype;
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
  void* y;                       // [batch * (1 + grid_h * grid_w), dim] dtype
  int64_t batch, channels, height, width, patch, dim;
  int32_t dtype, w_dtype;  // as in QfLinear; pixels are rounded to dtype first
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

// scores = logits / temperature, then top-k (ties kept), top-p, min-p: dropped entries become -inf. None of the three
// leaves fewer than min_tokens_to_keep. temperature 0 means greedy and leaves the row as it is.
typedef struct QfWarpLogits {
  const float* logits;                       // [batch, vocab] dense
  float* scores;                             // [batch, vocab] dense, may equal logits
  const float* temperature;                  // [batch]
  const int32_t* top_k;                      // [batch], 0: off
  const float* top_p;                        // [batch], 1: off
  const float* min_p;                        // [batch], 0: off
  int64_t batch, vocab, min_tokens_to_keep;  // at least 1
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

// Adds the adapter of each row: y[r] += scaling[s] * b[s] · (a[s] · x[r]) with s = adapters[r]. Adapters of lower rank
// are padded with zeros. a · x is kept in f32.
typedef struct QfLoraApply {
  const void* x;            // [m, k] dtype, rows ldx apart
  const void* a;            // [slots, rank, k] w_dtype dense
  const void* b;            // [slots, n, rank] w_dtype dense
  const float* scaling;     // [slots]
  const int32_t* adapters;  // [m]; negative: none. An index outside [0, slots) is QF_INVALID_ARGUMENT
  void* y;                  // [m, n] dtype, rows ldy apart; in place
  int64_t m, n, k, slots, rank, ldx, ldy;
  int32_t dtype, w_dtype;  // as in QfLinear
} QfLoraApply;

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
  // Bit set of 1 << QfDtype: the activation dtypes that ops take.
  int32_t activation_dtypes;

  // Optional (null: the caller replays op by op). Ops called between capture_begin and capture_end on one thread are
  // put into a graph instead of run; all their memory must stay valid until graph_free. capture_end gives null in
  // *graph and a failed status when anything in between failed.
  QfStatus (*capture_begin)(int32_t device);
  QfStatus (*capture_end)(int32_t device, void** graph);
  QfStatus (*graph_launch)(int32_t device, void* graph);
  void (*graph_free)(int32_t device, void* graph);

#define QF_OPS(X)                                     \
  X(linear, QfLinear)                                 \
  X(gated_linear, QfGatedLinear)                      \
  X(qkv_append, QfQkvAppend)                          \
  X(quantize, QfQuantize)                             \
  X(quant_linear, QfQuantLinear)                      \
  X(layer_norm, QfLayerNorm)                          \
  X(rms_norm, QfRmsNorm)                              \
  X(softmax, QfSoftmax)                               \
  X(rope, QfRope)                                     \
  X(attention, QfAttention)                           \
  X(kv_append, QfKvAppend)                            \
  X(paged_attention, QfPagedAttention)                \
  X(qformer_cross_attention, QfQFormerCrossAttention) \
  X(gather_rows, QfGatherRows)                        \
  X(scatter_rows, QfScatterRows)                      \
  X(binary, QfBinaryArgs)                             \
  X(unary, QfUnary)                                   \
  X(copy, QfCopy)                                     \
  X(resize_bicubic, QfResizeBicubic)                  \
  X(normalize_image, QfNormalizeImage)                \
  X(patch_embedding, QfPatchEmbedding)                \
  X(penalize_logits, QfPenalizeLogits)                \
  X(warp_logits, QfWarpLogits)                        \
  X(sample, QfSample)                                 \
  X(top_k, QfTopK)                                    \
  X(lora_merge, QfLoraMerge)                          \
  X(lora_apply, QfLoraApply)

#define QF_DECLARE_OP(name, Args) QfStatus (*name)(int32_t device, const Args* args);
  QF_OPS(QF_DECLARE_OP)
#undef QF_DECLARE_OP
} QfBackend;

#ifdef __cplusplus
}
#endif
