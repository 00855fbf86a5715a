// Sampling on logits: penalties in place, the warpers (temperature, top-k, top-p, min-p) and the draw of one token per
// row. Rows are independent jobs; within a row every sum has one fixed order, so a draw is a function of (scores, seed,
// step).
//
// The draw, for a backend that must agree: w[i] = exp(score[i] - max) in f32; ids are cut into chunks of 256; a chunk's
// mass is the f64 sum of its w in id order, the total the f64 sum of the chunks in order. u = (word0 + 0.5) * 2^-32
// (see philox.h). The token is the first id at which the running mass (chunks before it, then its own chunk's w in
// order) exceeds u * total, and the last id with w > 0 where rounding leaves none. Source: Holtzman et al. 2020
// (top-p); transformers' logits processors (the order and the ties).

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "error.h"
#include "families.h"
#include "kernels.h"
#include "philox.h"
#include "scratch.h"
#include "select.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();
constexpr int64_t kChunk = 256;
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

// mass = softmax(row) in f32; returns the largest probability.
float probabilities(const float* row, int64_t vocab, float max, float* mass) {
  kernels().softmax.exp_shifted(row, max, mass, vocab);
  double sum = 0.0;
  for (int64_t i = 0; i < vocab; ++i) sum += mass[i];
  const float total = static_cast<float>(sum);
  for (int64_t i = 0; i < vocab; ++i) mass[i] /= total;
  return 1.0f / total;
}

// The cut that leaves the `keep` entries which an ascending stable sort puts last.
TailCut tail_before(const float* row, int64_t vocab, int64_t keep) {
  const uint32_t limit = kth_largest_key(row, vocab, keep);
  int64_t equal = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    const uint32_t key = order_key(row[i]);
    equal += key == limit;
    keep -= key > limit;
  }
  return {limit, equal - keep};
}

void drop_tail(float* row, const float* mass, int64_t vocab, float top_p, int64_t keep) {
  TailCut cut = tail_of_mass(row, mass, vocab, static_cast<float>(1.0 - static_cast<double>(top_p)));
  const TailCut longest = tail_before(row, vocab, keep);
  if (longest.key < cut.key || (longest.key == cut.key && longest.equal < cut.equal)) cut = longest;
  int64_t equal = cut.equal;
  for (int64_t i = 0; i < vocab; ++i) {
    const uint32_t key = order_key(row[i]);
    if (key < cut.key || (key == cut.key && equal-- > 0)) row[i] = kDropped;
  }
}

// Entries whose probability is less than min_p of the largest. Equals of the last one kept are kept.
void drop_unlikely(float* row, const float* mass, int64_t vocab, float limit, int64_t keep) {
  const uint32_t kept = kth_largest_key(row, vocab, keep);
  for (int64_t i = 0; i < vocab; ++i) {
    if (mass[i] < limit && order_key(row[i]) < kept) row[i] = kDropped;
  }
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
  const int64_t keep = std::min(a.min_tokens_to_keep, a.vocab);
  const int64_t top_k = std::max<int64_t>(a.top_k[b], keep);
  if (a.top_k[b] > 0 && top_k < a.vocab) drop_below_top_k(row, a.vocab, top_k);
  const float top_p = a.top_p[b], min_p = a.min_p[b];
  if (!(top_p < 1.0f) && !(min_p > 0.0f)) return;
  auto* mass = static_cast<float*>(thread_scratch(Scratch::kRow, static_cast<size_t>(a.vocab) * sizeof(float)));
  if (top_p < 1.0f) {
    probabilities(row, a.vocab, max, mass);
    drop_tail(row, mass, a.vocab, top_p, keep);
  }
  if (min_p > 0.0f) {
    const float limit = min_p * probabilities(row, a.vocab, max, mass);
    drop_unlikely(row, mass, a.vocab, limit, keep);
  }
}

int32_t first_equal(const float* row, int64_t vocab, float value) {
  return static_cast<int32_t>(std::find(row, row + vocab, value) - row);
}

int32_t draw(const float* row, int64_t vocab, float max, double u) {
  auto* weight = static_cast<float*>(thread_scratch(Scratch::kRow, static_cast<size_t>(vocab) * sizeof(float)));
  kernels().softmax.exp_shifted(row, max, weight, vocab);
  const int64_t chunks = (vocab + kChunk - 1) / kChunk;
  auto* mass = static_cast<double*>(thread_scratch(Scratch::kExtra, static_cast<size_t>(chunks) * sizeof(double)));
  double total = 0.0;
  for (int64_t c = 0; c < chunks; ++c) {
    mass[c] = 0.0;
    for (int64_t i = c * kChunk; i < std::min((c + 1) * kChunk, vocab); ++i) mass[c] += weight[i];
    total += mass[c];
  }
  const double target = u * total;
  double before = 0.0;
  for (int64_t c = 0; c < chunks; before += mass[c++]) {
    if (before + mass[c] <= target) continue;
    double running = before;
    for (int64_t i = c * kChunk; i < std::min((c + 1) * kChunk, vocab); ++i) {
      running += weight[i];
      if (running > target && weight[i] > 0.0f) return static_cast<int32_t>(i);
    }
  }
  int64_t last = vocab - 1;
  while (weight[last] == 0.0f) --last;
  return static_cast<int32_t>(last);
}

int32_t sample_row(const QfSample& a, int64_t b) {
  const float* row = a.scores + b * a.vocab;
  const float max = a.vocab > 0 ? kernels().softmax.row_max(row, a.vocab) : kDropped;
  if (!std::isfinite(max)) return -1;
  if (!(a.temperature[b] > 0.0f)) return first_equal(row, a.vocab, max);
  const auto* seed = a.seed + b * 2;
  return draw(row, a.vocab, max,
              uniform_from_philox(static_cast<uint32_t>(seed[0]), static_cast<uint32_t>(seed[1]),
                                  static_cast<uint32_t>(a.step[b])));
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
