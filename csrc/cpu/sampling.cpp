// Sampling on logits: penalties in place, the warpers (temperature, top-k, top-p, min-p) and the draw of one token per
// row. Rows are independent jobs; within a row every sum has one fixed order, so a draw is a function of (scores, seed,
// step).
//
// The draw, as on every backend (backend/draw_rule.h): w[i] = exp(score[i] - max) in f32, its integer mass summed in id
// order; the token is the first id at which the running sum exceeds the target that seed and step give. Source:
// Holtzman et al. 2020 (top-p); transformers' logits processors (the order and the ties).

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/draw_rule.h"
#include "error.h"
#include "families.h"
#include "kernels.h"
#include "scratch.h"
#include "select.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();
constexpr double kNanosecondsPerScore = 2.0;

bool offsets_fit(const int32_t* offsets, int64_t batch, int64_t length) {
  if (offsets[0] != 0 || offsets[batch] > length) return false;
  for (int64_t b = 0; b < batch; ++b) {
    if (offsets[b + 1] < offsets[b]) return false;
  }
  return true;
}

void penalize_history(float* row, int64_t vocab, const int32_t* ids, int64_t count, float penalty) {
  std::vector<bool> seen(static_cast<size_t>(vocab));
  for (int64_t i = 0; i < count; ++i) {
    const int32_t id = ids[i];
    if (id < 0 || id >= vocab || seen[id]) continue;
    seen[id] = true;
    row[id] = row[id] < 0.0f ? row[id] * penalty : row[id] / penalty;
  }
}

void drop_below_top_k(float* row, int64_t vocab, int64_t k) {
  const uint32_t limit = kth_largest_key(row, vocab, k);
  for (int64_t i = 0; i < vocab; ++i) {
    if (order_key(row[i]) < limit) row[i] = kDropped;
  }
}

uint64_t sum_of_masses(const float* weight, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += mass_of(weight[i]);
  return sum;
}

// Top-p and min-p in one pass: entries of equal score drop by ascending id, and the `keep` last of the order stay.
// weight: exp(row - max)
void drop_unlikely(float* row, const float* weight, int64_t vocab, float max, float top_p, float min_p, int64_t keep) {
  const uint32_t last_kept = keep == 1 ? order_key(max) : kth_largest_key(row, vocab, keep);
  const TailCut most = tail_leaving(row, vocab, keep, last_kept);
  TailCut nucleus = {0, 0};
  if (top_p < 1.0f) {
    const uint64_t total = sum_of_masses(weight, vocab);
    nucleus = shorter(most, tail_of_mass(row, weight, vocab, total, tail_limit(top_p)));
  }
  for_each_in_tail(row, vocab, most, [&](int64_t i) {
    const uint32_t key = order_key(row[i]);
    const bool outside = key < nucleus.key || (key == nucleus.key && nucleus.equal-- > 0);
    if (outside || weight[i] < min_p) row[i] = kDropped;
  });
}

void warp_row(const QfWarpLogits& a, int64_t b) {
  const float* logits = a.logits + b * a.vocab;
  float* row = a.scores + b * a.vocab;
  const float temperature = a.temperature[b];
  if (!(temperature > 0.0f)) {
    if (row != logits) std::memcpy(row, logits, static_cast<size_t>(a.vocab) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < a.vocab; ++i) row[i] = logits[i] / temperature;
  const float max = kernels().softmax.row_max(row, a.vocab);
  if (!std::isfinite(max)) return;  // the draw reports such a row
  if (a.top_k[b] > 0) {
    const int64_t k = std::max<int64_t>(a.top_k[b], a.min_tokens_to_keep);
    if (k < a.vocab) drop_below_top_k(row, a.vocab, k);
  }
  const float top_p = a.top_p[b], min_p = a.min_p[b];
  if (!(top_p < 1.0f) && !(min_p > 0.0f)) return;
  auto* weight = static_cast<float*>(thread_scratch(Scratch::kRow, static_cast<size_t>(a.vocab) * sizeof(float)));
  kernels().softmax.exp_shifted(row, max, weight, a.vocab);
  drop_unlikely(row, weight, a.vocab, max, top_p, min_p, std::clamp<int64_t>(a.min_tokens_to_keep, 1, a.vocab));
}

int32_t first_equal(const float* row, int64_t vocab, float value) {
  return static_cast<int32_t>(std::find(row, row + vocab, value) - row);
}

int32_t draw(const float* row, int64_t vocab, float max, uint32_t word) {
  auto* weight = static_cast<float*>(thread_scratch(Scratch::kRow, static_cast<size_t>(vocab) * sizeof(float)));
  kernels().softmax.exp_shifted(row, max, weight, vocab);
  const uint64_t target = draw_target(word, sum_of_masses(weight, vocab));
  uint64_t running = 0;
  int64_t i = 0;
  for (; i + 1 < vocab; ++i) {
    running += mass_of(weight[i]);
    if (running > target) break;
  }
  return static_cast<int32_t>(i);
}

int32_t sample_row(const QfSample& a, int64_t b) {
  const float* row = a.scores + b * a.vocab;
  const float max = a.vocab > 0 ? kernels().softmax.row_max(row, a.vocab) : kDropped;
  if (!std::isfinite(max)) return -1;
  if (!(a.temperature[b] > 0.0f)) return first_equal(row, a.vocab, max);
  const auto* seed = a.seed + b * 2;
  return draw(
      row, a.vocab, max,
      philox4x32_10(static_cast<uint32_t>(seed[0]), static_cast<uint32_t>(seed[1]), static_cast<uint32_t>(a.step[b])));
}

}  // namespace

QfStatus penalize_logits(int32_t, const QfPenalizeLogits* args) {
  const auto& a = *args;
  if (!offsets_fit(a.cu_history, a.batch, a.history_len) || !offsets_fit(a.cu_banned, a.batch, a.banned_len)) {
    return fail(QF_INVALID_ARGUMENT, "penalizeLogits: cuHistory and cuBanned must rise from 0 to the number of ids");
  }
  for (int64_t b = 0; b < a.batch; ++b) {
    float* row = a.logits + b * a.vocab;
    const int32_t begin = a.cu_history[b], end = a.cu_history[b + 1];
    if (a.repetition_penalty[b] != 1.0f && end > begin) {
      penalize_history(row, a.vocab, a.history + begin, end - begin, a.repetition_penalty[b]);
    }
    for (int32_t i = a.cu_banned[b]; i < a.cu_banned[b + 1]; ++i) {
      if (a.banned[i] >= 0 && a.banned[i] < a.vocab) row[a.banned[i]] = kDropped;
    }
  }
  return QF_OK;
}

QfStatus warp_logits(int32_t, const QfWarpLogits* args) {
  parallel_for(args->batch, grain_for(kNanosecondsPerScore * static_cast<double>(args->vocab)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b) warp_row(*args, b);
               });
  return QF_OK;
}

QfStatus sample(int32_t, const QfSample* args) {
  parallel_for(args->batch, grain_for(kNanosecondsPerScore * static_cast<double>(args->vocab)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b) args->ids[b] = sample_row(*args, b);
               });
  return QF_OK;
}

}  // namespace qformer::cpu
