// From logits to ids. See QfPenalizeLogits, QfWarpLogits, QfSample and QfTopK in backend/backend.h.
#include "backend/draw_rule.h"
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {
namespace {

void check_logits(const char* op, const char* name, const Tensor& x) {
  check_rank(op, name, x, 2, "[batch, vocab]");
  check_f32(op, name, x);
  check_dense(op, name, x);
  check_range(op, "vocab", x.shape[1], 1, kMaxVocab);
}

void check_ids(const char* op, const char* name, const Tensor& x) {
  check_rank(op, name, x, 1, "[ids]");
  check_vector(op, name, x, x.shape[0], QF_I32);
}

}  // namespace

void penalize_logits(const Tensor& logits, const Tensor& history, const Tensor& cu_history, const Tensor& banned,
                     const Tensor& cu_banned, const Tensor& repetition_penalty) {
  constexpr const char* kOp = "penalizeLogits";
  Device& device = common_device(kOp, logits, {&history, &cu_history, &banned, &cu_banned, &repetition_penalty});
  check_logits(kOp, "logits", logits);
  check_writable(kOp, "logits", logits);
  const int64_t batch = logits.shape[0];
  check_ids(kOp, "history", history);
  check_ids(kOp, "banned", banned);
  check_vector(kOp, "cuHistory", cu_history, batch + 1, QF_I32);
  check_vector(kOp, "cuBanned", cu_banned, batch + 1, QF_I32);
  check_vector(kOp, "repetitionPenalty", repetition_penalty, batch, QF_F32);
  const QfPenalizeLogits args{logits.as<float>(),
                              history.as<int32_t>(),
                              cu_history.as<int32_t>(),
                              banned.as<int32_t>(),
                              cu_banned.as<int32_t>(),
                              repetition_penalty.as<float>(),
                              batch,
                              logits.shape[1],
                              history.shape[0],
                              banned.shape[0]};
  launch(device, kOp, device.backend->penalize_logits, args, logits, history, cu_history, banned, cu_banned,
         repetition_penalty);
}

Tensor warp_logits(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                   const Tensor& min_p, int64_t min_tokens_to_keep) {
  constexpr const char* kOp = "warpLogits";
  Device& device = common_device(kOp, logits, {&temperature, &top_k, &top_p, &min_p});
  check_logits(kOp, "logits", logits);
  const int64_t batch = logits.shape[0];
  check_vector(kOp, "temperature", temperature, batch, QF_F32);
  check_vector(kOp, "topK", top_k, batch, QF_I32);
  check_vector(kOp, "topP", top_p, batch, QF_F32);
  check_vector(kOp, "minP", min_p, batch, QF_F32);
  check_range(kOp, "minTokensToKeep", min_tokens_to_keep, 1, INT32_MAX);
  Tensor scores = empty_tensor(device, logits.shape, QF_F32);
  const QfWarpLogits args{logits.as<float>(),
                          scores.as<float>(),
                          temperature.as<float>(),
                          top_k.as<int32_t>(),
                          top_p.as<float>(),
                          min_p.as<float>(),
                          batch,
                          logits.shape[1],
                          min_tokens_to_keep};
  launch(device, kOp, device.backend->warp_logits, args, scores, logits, temperature, top_k, top_p, min_p);
  return scores;
}

Tensor sample(const Tensor& scores, const Tensor& temperature, const Tensor& seed, const Tensor& step) {
  constexpr const char* kOp = "sample";
  Device& device = common_device(kOp, scores, {&temperature, &seed, &step});
  check_logits(kOp, "scores", scores);
  const int64_t batch = scores.shape[0];
  check_vector(kOp, "temperature", temperature, batch, QF_F32);
  check_dtype(kOp, "seed", seed, {QF_I32});
  check_shape(kOp, "seed", seed, Shape{batch, 2});
  check_dense(kOp, "seed", seed);
  check_vector(kOp, "step", step, batch, QF_I32);
  Tensor ids = empty_tensor(device, Shape{batch}, QF_I32);
  const QfSample args{scores.as<float>(), temperature.as<float>(), seed.as<int32_t>(),
                      step.as<int32_t>(), ids.as<int32_t>(),       batch,
                      scores.shape[1]};
  launch(device, kOp, device.backend->sample, args, ids, scores, temperature, seed, step);
  return ids;
}

TopK top_k(const Tensor& x, int64_t k) {
  constexpr const char* kOp = "topK";
  check_rank(kOp, "x", x, 2, "[rows, cols]");
  check_f32(kOp, "x", x);
  check_dense(kOp, "x", x);
  check_range(kOp, "k", k, 1, x.shape[1]);
  const Shape shape{x.shape[0], k};
  TopK result{empty_tensor(x.device(), shape, QF_F32), empty_tensor(x.device(), shape, QF_I32)};
  const QfTopK args{x.as<float>(), result.values.as<float>(), result.ids.as<int32_t>(), x.shape[0], x.shape[1], k};
  launch(x.device(), kOp, x.device().backend->top_k, args, result.values, x, result.ids);
  return result;
}

}  // namespace qformer::ops
