// The warpers: temperature, then top-k (ties kept), top-p and min-p; dropped scores become -inf.
//
// A block per row and no sort: each limit is a radix selection (radix_select.cuh). Only the first walk writes scores;
// the limits then are keys, and the last walk drops everything beyond them at once. "Tail" is the ascending order,
// equal scores by ascending id. Traffic: the row from memory once, then up to ten walks over it in L2. Source: Holtzman
// et al. 2020 (top-p); order and ties as in cpu/sampling.cpp, by the rules of backend/draw_rule.h.
#include "entry.h"
#include "radix_select.cuh"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

struct WarpArgs {
  QfWarpLogits op;
  bool wide;
};

// Where a tail ends: keys below `key` are in it, and of the entries with that key the first `equal`.
struct TailCut {
  uint32_t key;
  uint64_t equal;
};

QF_DEVICE TailCut shorter(const TailCut& a, const TailCut& b) {
  if (a.key != b.key) return a.key < b.key ? a : b;
  return {a.key, a.equal < b.equal ? a.equal : b.equal};
}

// One row under its limits. Scores below `floor` (top-k) count as -inf.
struct WarpedRow {
  ScoreRow row;
  float max;
  uint32_t floor;

  QF_DEVICE uint32_t key(float score) const {
    const uint32_t k = order_key(score);
    return k < floor ? kKeyOfMinusInfinity : k;
  }
  QF_DEVICE float weight(float score) const { return order_key(score) < floor ? 0.0f : exp_weight(score - max); }
};

// The scores k-th from above: its key, and how many are below and at it.
QF_DEVICE Selected kth_largest(const WarpedRow& warped, RowBlock& block, int64_t k) {
  return select_by_mass(
      warped.row, block, static_cast<uint64_t>(warped.row.vocab - k), [&](float score) { return warped.key(score); },
      [](float) { return uint64_t{1}; });
}

// The tail that leaves the `keep` last entries.
QF_DEVICE TailCut tail_leaving(const WarpedRow& warped, RowBlock& block, int64_t keep) {
  const Selected selected = kth_largest(warped, block, keep);
  const uint64_t above = static_cast<uint64_t>(warped.row.vocab) - selected.below - selected.at;
  return {selected.key, selected.at - (static_cast<uint64_t>(keep) - above)};
}

// The largest mass that tail_fits; a binary search by 32 lanes, five bits a step.
QF_DEVICE uint64_t largest_fitting(uint64_t total, float limit, RowBlock& block) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint64_t fitting = 0;
  if (threadIdx.x < 32) {
    for (int shift = 58; shift > -5; shift -= 5) {
      const int step = shift < 0 ? 0 : shift;
      const uint64_t candidate = fitting + (static_cast<uint64_t>(lane) << step);
      const unsigned fits = __ballot_sync(kFullWarp, candidate <= total && tail_fits(candidate, total, limit));
      fitting += static_cast<uint64_t>(__popc(fits) - 1) << step;
    }
  }
  return __shfl_sync(kFullWarp, block.exchange(fitting), 0);
}

QF_DEVICE TailCut tail_of_mass(const WarpedRow& warped, RowBlock& block, uint64_t total, float limit) {
  const uint64_t fitting = largest_fitting(total, limit, block);
  if (fitting >= total) return {0xffffffffu, static_cast<uint64_t>(warped.row.vocab)};
  const auto mass = [&](float score) { return mass_of(warped.weight(score)); };
  const Selected selected = select_by_mass(
      warped.row, block, fitting, [&](float score) { return warped.key(score); }, mass);
  return {selected.key, (fitting - selected.below) / mass(score_of_key(selected.key))};
}

// A cut as a predicate: of the entries with its key, those with a lower id than `first_kept` are in the tail.
struct Tail {
  uint32_t key;
  int32_t first_kept;

  QF_DEVICE bool has(uint32_t k, int32_t id) const { return k < key || (k == key && id < first_kept); }
};

QF_DEVICE Tail tail_of(const WarpedRow& warped, RowBlock& block, const TailCut& cut) {
  if (cut.equal == 0) return {cut.key, 0};
  return {cut.key, nth_of_key(warped.row, block, cut.key, cut.equal, [&](float score) { return warped.key(score); })};
}

// Top-p and min-p; at least the `keep` last entries of the order stay.
QF_DEVICE void drop_unlikely(const WarpedRow& warped, RowBlock& block, Global<float> scores, float top_p, float min_p,
                             int64_t keep) {
  uint64_t total = 0, equal = 0;
  const uint32_t key_of_max = order_key(warped.max);
  for_each_score(warped.row, [&](int32_t, float score) {
    total += mass_of(warped.weight(score));
    equal += order_key(score) == key_of_max ? 1 : 0;
  });
  total = block.exchange.add(total);
  equal = block.exchange.add(equal);
  const TailCut most = keep == 1 ? TailCut{key_of_max, equal - 1} : tail_leaving(warped, block, keep);
  TailCut nucleus = {0, 0};
  if (top_p < 1.0f) nucleus = shorter(most, tail_of_mass(warped, block, total, tail_limit(top_p)));
  const Tail in_most = tail_of(warped, block, most), outside = tail_of(warped, block, nucleus);
  map_scores(warped.row, scores, [&](int32_t id, float score) {
    const uint32_t k = warped.key(score);
    const bool dropped = outside.has(k, id) || (in_most.has(k, id) && warped.weight(score) < min_p);
    return dropped || order_key(score) < warped.floor ? -INFINITY : score;
  });
}

QF_KERNEL void QF_LAUNCH_BOUNDS(kRowThreads, 1) warp_rows(WarpArgs args) {
  const QfWarpLogits& op = args.op;
  SharedMemory shared;
  RowBlock block(shared);
  const int64_t b = blockIdx.x;
  const auto vocab = static_cast<int32_t>(op.vocab);
  const ScoreRow logits = {Global<const float>(op.logits) + b * op.vocab, vocab, args.wide};
  const Global<float> scores = Global<float>(op.scores) + b * op.vocab;
  const float temperature = Global<const float>(op.temperature)[b];
  if (!(temperature > 0.0f)) {
    if (op.logits != op.scores) map_scores(logits, scores, [](int32_t, float score) { return score; });
    return;
  }
  uint32_t best = 0;
  map_scores(logits, scores, [&](int32_t, float logit) {
    const float score = logit / temperature;
    const uint32_t key = order_key(score);
    best = key > best ? key : best;
    return score;
  });
  best = static_cast<uint32_t>(block.exchange.largest(best));
  if (!is_finite_key(best)) return;  // the draw reports such a row

  WarpedRow warped = {{scores, vocab, args.wide}, score_of_key(best), 0};
  const int64_t min_keep = op.min_tokens_to_keep > 1 ? op.min_tokens_to_keep : 1;
  const int64_t keep = min_keep < op.vocab ? min_keep : op.vocab;
  const int32_t top_k = Global<const int32_t>(op.top_k)[b];
  const int64_t k = top_k > min_keep ? top_k : min_keep;
  if (top_k > 0 && k < op.vocab) warped.floor = kth_largest(warped, block, k).key;
  const float top_p = Global<const float>(op.top_p)[b], min_p = Global<const float>(op.min_p)[b];
  if (top_p < 1.0f || min_p > 0.0f) {
    drop_unlikely(warped, block, scores, top_p, min_p, keep);
  } else if (warped.floor > 0) {
    map_scores(warped.row, scores,
               [&](int32_t, float score) { return order_key(score) < warped.floor ? -INFINITY : score; });
  }
}

}  // namespace

QfStatus warp_logits(int32_t device, const QfWarpLogits* op) {
  if (op->batch == 0 || op->vocab == 0) return QF_OK;
  if (op->vocab > kMaxVocab) return fail(QF_UNSUPPORTED, "warpLogits: vocab is above %d", static_cast<int>(kMaxVocab));
  const WarpArgs args = {
      *op, rows_are_wide(op->logits, op->batch, op->vocab) && rows_are_wide(op->scores, op->batch, op->vocab)};
  return launch("warpLogits", context_of(device).stream, warp_rows, dim3(static_cast<unsigned>(op->batch)),
                dim3(kRowThreads), select_bytes(), args);
}

}  // namespace qformer::cuda
