// Every op of the library: shapes, dtypes and devices are checked here, once; the result is allocated; the backend does
// the work. Activations ("act") are of one dtype per call, one that the device computes in (f32; on some f16 and bf16
// too); their weights have the same dtype, or any of the three for f32. Errors: SHAPE, DTYPE, DEVICE, INVALID_ARGUMENT
// with messages of the form "rmsNorm: weight must be [2560], got [2048]". Formulas and layouts stand at the argument
// structs in backend/backend.h.
#pragma once

#include "core/graph.h"
#include "core/tensor.h"

namespace qformer::ops {

// act(n(x) · wᵀ + bias) + residual, n: rms_norm where norm_weight is given. x: [..., k] act, w: [n, k], bias: [n] f32,
// residual: [..., n] of y_dtype, norm_weight: [k] f32 → [..., n] of y_dtype: that of x or f32, negative for that of x
Tensor linear(const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor* residual, const Tensor* norm_weight,
              double norm_eps, int32_t activation, int32_t math, int32_t y_dtype);
// act(n(x) · w_gateᵀ) * (n(x) · w_upᵀ). w_gate, w_up: [n, k] of one dtype, norm_weight: [k] or null → [..., n] act
Tensor gated_linear(const Tensor& x, const Tensor& w_gate, const Tensor& w_up, const Tensor* norm_weight,
                    double norm_eps, int32_t activation, int32_t math);
// q = rope(n(x) · wqᵀ) as the result; rope(n(x) · wkᵀ) and n(x) · wvᵀ into their slots, in place. x: [tokens, k] act,
// norm_weight: [k] f32, wq: [heads * head_dim, k], wk, wv: [kv_heads * head_dim, k], positions, slot_mapping: [tokens]
// i32, inv_freq: [head_dim / 2] f32, caches: [blocks, block_size, kv_heads, head_dim] → [tokens, heads, head_dim] act
Tensor qkv_append(const Tensor& x, const Tensor& norm_weight, const Tensor& wq, const Tensor& wk, const Tensor& wv,
                  const Tensor& positions, const Tensor& inv_freq, const Tensor& k_cache, const Tensor& v_cache,
                  const Tensor& slot_mapping, double norm_eps, int32_t math);
struct Quantized {
  Tensor q;       // [n, k * bits / 8] u8
  Tensor scales;  // [n, k / group] bf16
};
// w: [n, k] f32|f16|bf16; bits: 8 | 4; group: even, divides k
Quantized quantize(const Tensor& w, int64_t bits, int64_t group);
// linear with the weight as quantize gives it; bits and group follow from the shapes
Tensor quant_linear(const Tensor& x, const Tensor& q, const Tensor& scales, const Tensor* bias, const Tensor* residual,
                    const Tensor* norm_weight, double norm_eps, int32_t activation, int32_t math, int32_t y_dtype);
// w + scaling * b · a, rounded once. w: [out, in], a: [rank, in] f32, b: [out, rank] f32 → [out, in] of w's dtype
Tensor lora_merge(const Tensor& w, const Tensor& a, const Tensor& b, double scaling);
// y[r] += scaling[s] * b[s] · (a[s] · x[r]), s = adapters[r], none where negative; in place. y: [..., n], x: [..., k]
// act, a: [slots, rank, k], b: [slots, n, rank] of one dtype, scaling: [slots] f32, adapters: [rows] i32
void lora_apply(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& b, const Tensor& scaling,
                const Tensor& adapters);

// x: [..., c] act, weight and bias: [c] f32
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);
// x: [..., c] f32; over the last axis
Tensor softmax(const Tensor& x, bool log);

// x: [tokens, heads, head_dim] act, positions: [tokens] i32, inv_freq: [head_dim / 2] f32
Tensor rope(const Tensor& x, const Tensor& positions, const Tensor& inv_freq);
// q: [tokens_q, heads, head_dim], k, v: [tokens_k, kv_heads, head_dim] act, cu_seqlens: [batch + 1] i32,
// bias: [heads, span] f32, by distance of key and query, distance 0 at bias_origin → like q, dense
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens_q,
                 const Tensor& cu_seqlens_k, const Tensor* bias, int64_t bias_origin, double scale, int32_t mask,
                 int64_t num_query, int32_t math);
// k, v: [tokens, kv_heads, head_dim] act, caches: [blocks, block_size, kv_heads, head_dim], slot_mapping: [tokens] i32;
// in place
void kv_append(const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
               const Tensor& slot_mapping);
// q: [tokens, heads, head_dim] act, cu_seqlens_q: [batch + 1], block_table: [batch, max_blocks], context_lens: [batch]
// i32, bias as in attention → like q, dense
Tensor paged_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& cu_seqlens_q,
                       const Tensor& block_table, const Tensor& context_lens, const Tensor* bias, int64_t bias_origin,
                       double scale, int32_t math);

// One cross-attention block of the Q-Former: layer_norm(x + attention(x · wqᵀ + bq, k, v) · woᵀ + bo) for the first
// num_query rows of each sequence, the others copied. x: [batch, rows, hidden] act, wq, wo: [hidden, hidden], bq, bo,
// norm_weight, norm_bias: [hidden] f32, k, v: [batch * keys, heads, head_dim] act of one row stride → like x
Tensor qformer_cross_attention(const Tensor& x, const Tensor& wq, const Tensor& bq, const Tensor& k, const Tensor& v,
                               const Tensor& wo, const Tensor& bo, const Tensor& norm_weight, const Tensor& norm_bias,
                               int64_t num_query, double scale, double norm_eps, int32_t math);

// table: [rows, cols] f32|f16|bf16, ids: [tokens] i32 → [tokens, cols] of dtype f32|f16|bf16
Tensor embedding(const Tensor& ids, const Tensor& table, int32_t dtype);
// The same, keeping the dtype of x.
Tensor gather_rows(const Tensor& x, const Tensor& ids);
// dst[ids[t]] = src[t]. dst: [rows, cols] f32|f16|bf16, src: [tokens, cols] of the same; in place
void scatter_rows(const Tensor& dst, const Tensor& ids, const Tensor& src);

// a: [..., c] act; b: the same shape, or [c]
Tensor binary(const Tensor& a, const Tensor& b, int32_t op);
// act(x) * scale + shift
Tensor unary(const Tensor& x, int32_t activation, double scale, double shift);
// A dense copy, converted to `dtype`.
Tensor cast(const Tensor& x, int32_t dtype);
// dst = src with conversion; same shape; in place
void copy_into(const Tensor& dst, const Tensor& src);

// x: [height, width, 3] u8 → [out_height, out_width, 3] u8
Tensor resize_bicubic(const Tensor& x, int64_t out_height, int64_t out_width);
// x: [height, width, 3] u8, mean and std: [3] → [3, height, width] f32
Tensor normalize_image(const Tensor& x, double rescale, const std::array<double, 3>& mean,
                       const std::array<double, 3>& std);
// x: [batch, channels, height, width] f32, w: [dim, channels, patch, patch], class_embedding: [dim], positions: [1 +
// grid, dim] f32 → [batch * (1 + grid), dim] of dtype, an activation dtype
Tensor patch_embedding(const Tensor& x, const Tensor& w, const Tensor* bias, const Tensor& class_embedding,
                       const Tensor& positions, int32_t dtype, int32_t math);

// logits: [batch, vocab] f32, in place; history, banned: flat ids with cu_history, cu_banned: [batch + 1] i32
void penalize_logits(const Tensor& logits, const Tensor& history, const Tensor& cu_history, const Tensor& banned,
                     const Tensor& cu_banned, const Tensor& repetition_penalty);
// temperature, top_p, min_p: [batch] f32, top_k: [batch] i32
Tensor warp_logits(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                   const Tensor& min_p, int64_t min_tokens_to_keep);
// scores: [batch, vocab] f32, seed: [batch, 2] i32, step: [batch] i32 → ids [batch] i32
Tensor sample(const Tensor& scores, const Tensor& temperature, const Tensor& seed, const Tensor& step);
struct TopK {
  Tensor values;  // [rows, k] f32
  Tensor ids;     // [rows, k] i32
};
TopK top_k(const Tensor& x, int64_t k);

}  // namespace qformer::ops
