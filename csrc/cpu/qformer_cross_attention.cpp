// One cross-attention block of the Q-Former: query projection, attention over the image's keys, output projection with
// the residual, layer norm. The parts run one after the other through working memory and equal the separate ops bit for
// bit. Traffic: both weights, k and v once per call. Source: Li et al. 2023 (BLIP-2), section 3.1.

#include <cstring>
#include <vector>

#include "families.h"
#include "linear.h"
#include "scratch.h"

namespace qformer::cpu {
namespace {

float* floats(Scratch slot, int64_t count) {
  return static_cast<float*>(thread_scratch(slot, static_cast<size_t>(count) * sizeof(float)));
}

// [0, step, 2 * step, ...], batch + 1 entries
std::vector<int32_t> even_offsets(int64_t batch, int64_t step) {
  std::vector<int32_t> offsets(static_cast<size_t>(batch) + 1);
  for (size_t b = 0; b < offsets.size(); b++) offsets[b] = static_cast<int32_t>(static_cast<int64_t>(b) * step);
  return offsets;
}

void attend(const QfQFormerCrossAttention& a, const float* q, float* context) {
  const std::vector<int32_t> cu_q = even_offsets(a.batch, a.num_query), cu_k = even_offsets(a.batch, a.keys);
  QfAttention args{};
  args.q = q;
  args.k = a.k;
  args.v = a.v;
  args.o = context;
  args.cu_seqlens_q = cu_q.data();
  args.cu_seqlens_k = cu_k.data();
  args.batch = a.batch;
  args.tokens_q = a.batch * a.num_query;
  args.tokens_k = a.batch * a.keys;
  args.heads = args.kv_heads = a.heads;
  args.head_dim = a.head_dim;
  args.q_stride = a.heads * a.head_dim;
  args.k_stride = args.v_stride = a.kv_stride;
  args.scale = a.scale;
  args.mask = QF_MASK_FULL;
  args.math = a.math;
  attention(0, &args);
}

}  // namespace

QfStatus qformer_cross_attention(int32_t, const QfQFormerCrossAttention* args) {
  const auto& a = *args;
  const int64_t width = a.heads * a.head_dim, rows = a.batch * a.num_query;
  const auto* x = static_cast<const float*>(a.x);
  auto* y = static_cast<float*>(a.y);
  float* q = floats(Scratch::kProjected, rows * width);
  float* context = floats(Scratch::kContext, rows * width);

  LinearCall call{};
  call.m = a.num_query;
  call.n = call.k = width;
  call.ldx = call.ldw = call.ldr = call.ldy = width;
  call.w_dtype = a.w_dtype;
  call.activation = QF_ACT_NONE;
  call.math = a.math;
  // The query rows of one sequence are dense, those of the batch are not: one product each.
  call.w = a.wq;
  call.bias = a.bq;
  for (int64_t b = 0; b < a.batch; b++) {
    call.x = x + b * a.rows_per_batch * width;
    call.y = q + b * a.num_query * width;
    run_linear(call);
  }
  attend(a, q, context);
  call.w = a.wo;
  call.bias = a.bo;
  for (int64_t b = 0; b < a.batch; b++) {
    const int64_t first = b * a.rows_per_batch * width;
    float* sum = q + b * a.num_query * width;
    call.x = context + b * a.num_query * width;
    call.residual = x + first;
    call.y = sum;
    run_linear(call);
    const QfLayerNorm norm{.x = sum,
                           .weight = a.norm_weight,
                           .bias = a.norm_bias,
                           .y = y + first,
                           .rows = a.num_query,
                           .cols = width,
                           .ldx = width,
                           .eps = a.norm_eps,
                           .dtype = QF_F32};
    layer_norm(0, &norm);
    const int64_t text = (a.rows_per_batch - a.num_query) * width, at = first + a.num_query * width;
    if (text > 0) std::memcpy(y + at, x + at, static_cast<size_t>(text) * sizeof(float));
  }
  return QF_OK;
}

}  // namespace qformer::cpu
