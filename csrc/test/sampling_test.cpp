// Penalties, warpers, the draw and top-k, against direct definitions.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "backend/draw_rule.h"
#include "cpu/families.h"
#include "random_data.h"
#include "test.h"

using namespace qformer;
using qformer::test::Random;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> warp(std::vector<float> logits, float temperature, int32_t top_k, float top_p, float min_p,
                        int64_t keep = 1) {
  const auto vocab = static_cast<int64_t>(logits.size());
  const QfWarpLogits args = {logits.data(), logits.data(), &temperature, &top_k, &top_p, &min_p, 1, vocab, keep};
  CHECK_EQ(cpu::warp_logits(0, &args), QF_OK);
  return logits;
}

int32_t sample(const std::vector<float>& scores, float temperature, int32_t seed, int32_t step) {
  const int32_t seeds[] = {seed, 7};
  int32_t id = -7;
  const QfSample args = {scores.data(), &temperature, seeds, &step, &id, 1, static_cast<int64_t>(scores.size())};
  CHECK_EQ(cpu::sample(0, &args), QF_OK);
  return id;
}

// Ids that survive top-p by an ascending stable sort and a running sum in double.
std::vector<bool> kept_by_top_p(const std::vector<float>& scores, double top_p) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  double total = 0, running = 0;
  for (const float score : scores) total += std::exp(static_cast<double>(score));
  std::vector<bool> kept(scores.size());
  for (size_t i = 0; i < order.size(); ++i) {
    running += std::exp(static_cast<double>(scores[order[i]])) / total;
    kept[order[i]] = running > 1 - top_p || i + 1 == order.size();
  }
  return kept;
}

}  // namespace

TEST("philox gives the published words") { CHECK_EQ(philox4x32_10(0, 0, 0), 0x6627e8d5u); }

__extension__ typedef unsigned __int128 Wide;

TEST("the draw's target is u times the total, below it for every word") {
  CHECK_EQ(draw_target(0, 1), 0u);
  CHECK_EQ(draw_target(0xffffffffu, 1), 0u);
  CHECK_EQ(draw_target(0x80000000u, 6), 3u);
  const uint64_t most = (uint64_t{1} << 63) - 1;
  CHECK_EQ(draw_target(0xffffffffu, most), most - (uint64_t{1} << 30));
  Random random(3);
  for (int i = 0; i < 1000; ++i) {
    const uint32_t word = random.next();
    const uint64_t total = (uint64_t{random.next() >> 1} << 32 | random.next()) >> random.next() % 40;
    const auto exact = (static_cast<Wide>(word) * 2 + 1) * total >> 33;
    CHECK_EQ(draw_target(word, total), static_cast<uint64_t>(exact));
  }
}

TEST("the penalty counts a repeated id once, bans win, and ids outside the vocabulary are ignored") {
  std::vector<float> logits = {2, -2, 4, 1, 8, -8};
  const int32_t history[] = {0, 1, 0, 99, -3, 2, 2}, cu_history[] = {0, 5, 7};
  const int32_t banned[] = {1, 1000, -1}, cu_banned[] = {0, 0, 3};
  const float penalty[] = {2.0f, 4.0f};
  const QfPenalizeLogits args = {logits.data(), history, cu_history, banned, cu_banned, penalty, 2, 3, 7, 3};
  CHECK_EQ(cpu::penalize_logits(0, &args), QF_OK);
  CHECK(logits == std::vector<float>({1, -4, 4, 1, -kInf, -32}));
}

TEST("offsets that fall or pass the end of the ids are refused") {
  std::vector<float> logits(4);
  const int32_t ids[] = {0, 1}, good[] = {0, 1, 2}, falling[] = {0, 2, 1}, beyond[] = {0, 1, 3}, shifted[] = {1, 1, 2};
  const float penalty[] = {2.0f, 2.0f};
  for (const int32_t* bad : {falling, beyond, shifted}) {
    const QfPenalizeLogits history = {logits.data(), ids, bad, ids, good, penalty, 2, 2, 2, 2};
    CHECK_EQ(cpu::penalize_logits(0, &history), QF_INVALID_ARGUMENT);
    const QfPenalizeLogits banned = {logits.data(), ids, good, ids, bad, penalty, 2, 2, 2, 2};
    CHECK_EQ(cpu::penalize_logits(0, &banned), QF_INVALID_ARGUMENT);
  }
}

TEST("top-k keeps every score that ties with the k-th") {
  CHECK(warp({1, 3, 2, 2, 0}, 1, 2, 1, 0) == std::vector<float>({-kInf, 3, 2, 2, -kInf}));
  CHECK(warp({1, 3, -kInf, -kInf}, 1, 3, 1, 0) == std::vector<float>({1, 3, -kInf, -kInf}));
  CHECK(warp({0.0f, -0.0f, -1}, 1, 1, 1, 0) == std::vector<float>({0, 0, -kInf}));
  CHECK(warp({4, 2}, 2, 5, 1, 0) == std::vector<float>({2, 1}));
}

TEST("top-p keeps what an ascending sort with a running sum keeps") {
  for (const size_t vocab : {1, 7, 257, 5000}) {
    const auto scores = Random(vocab).floats(static_cast<int64_t>(vocab), 8.0f);
    for (const float top_p : {0.01f, 0.5f, 0.9f, 0.999f}) {
      const auto kept = kept_by_top_p(scores, top_p);
      const auto warped = warp(scores, 1, 0, top_p, 0);
      for (size_t i = 0; i < vocab; ++i) CHECK_EQ(warped[i], kept[i] ? scores[i] : -kInf);
    }
  }
}

TEST("top-p drops the lowest ids of a group of equal scores and always keeps one") {
  CHECK(warp({1, 1, 1, 1}, 1, 0, 0.5f, 0) == std::vector<float>({-kInf, -kInf, 1, 1}));
  CHECK(warp({1, 1, 1, 1}, 1, 0, 0.0f, 0) == std::vector<float>({-kInf, -kInf, -kInf, 1}));
}

TEST("no warper leaves fewer than min_tokens_to_keep") {
  const std::vector<float> row = {5, 1, 3, 1, 2, -9};
  const std::vector<float> two = {5, -kInf, 3, -kInf, -kInf, -kInf}, four = {5, -kInf, 3, 1, 2, -kInf};
  CHECK(warp(row, 1, 1, 1, 0, 2) == two);
  CHECK(warp(row, 1, 0, 0.0f, 0, 2) == two);
  CHECK(warp(row, 1, 0, 1, 1.0f, 2) == two);
  CHECK(warp(row, 1, 0, 0.0f, 1.0f, 2) == two);
  CHECK(warp(row, 1, 0, 0.0f, 0, 4) == four);
  CHECK(warp(row, 1, 0, 1, 1.0f, 4) == four);
  CHECK(warp(row, 1, 0, 0.0f, 1.0f, 4) == four);
  CHECK(warp(row, 1, 1, 0.0f, 1.0f, 9) == row);
}

TEST("min-p compares with the largest probability after the other warpers") {
  const float half = std::log(0.5f), tenth = std::log(0.1f);
  CHECK(warp({0, half, tenth}, 1, 0, 1, 0.4f) == std::vector<float>({0, half, -kInf}));
  CHECK(warp({0, half, tenth}, 1, 0, 1, 1.0f) == std::vector<float>({0, -kInf, -kInf}));
}

TEST("temperature zero leaves the row and takes the lowest id among the largest") {
  CHECK(warp({3, 5, 5, 1}, 0, 1, 0.1f, 0.5f) == std::vector<float>({3, 5, 5, 1}));
  CHECK_EQ(sample({3, 5, 5, 1}, 0, 1, 0), 1);
}

TEST("a row with NaN or without a finite score gives no token") {
  for (const float temperature : {0.0f, 1.0f}) {
    std::vector<float> row(100, 1.0f);
    CHECK(sample(row, temperature, 1, 0) >= 0);
    for (const size_t at : {0, 50, 99}) {
      auto bad = row;
      bad[at] = kNan;
      CHECK_EQ(sample(bad, temperature, 1, 0), -1);
      CHECK_EQ(sample(warp(bad, temperature, 3, 0.5f, 0.1f), temperature, 1, 0), -1);
    }
    CHECK_EQ(sample(std::vector<float>(3, -kInf), temperature, 1, 0), -1);
    CHECK_EQ(sample(std::vector<float>(3, kInf), temperature, 1, 0), -1);
  }
}

TEST("draws follow the distribution and depend on seed and step only") {
  std::vector<float> scores(1000, -kInf);
  scores[3] = std::log(0.5f);
  scores[300] = std::log(0.3f);
  scores[999] = std::log(0.2f);
  int count[3] = {};
  const int draws = 4000;
  for (int step = 0; step < draws; ++step) {
    const int32_t id = sample(scores, 1, 11, step);
    CHECK_EQ(id, sample(scores, 1, 11, step));
    ++count[id == 3 ? 0 : id == 300 ? 1 : 2];
    const double u = (philox4x32_10(11, 7, static_cast<uint32_t>(step)) + 0.5) * 0x1p-32;
    // the cumulative distribution in id order; within 1e-6 of a boundary rounding decides
    if (std::abs(u - 0.5) > 1e-6 && std::abs(u - 0.8) > 1e-6) CHECK_EQ(id, u < 0.5 ? 3 : u < 0.8 ? 300 : 999);
  }
  // four standard deviations of a binomial count are at most 127
  CHECK_NEAR(count[0], 0.5 * draws, 127);
  CHECK_NEAR(count[1], 0.3 * draws, 127);
}

TEST("a row is warped and drawn alike alone and in a batch") {
  const int64_t vocab = 257, batch = 3;
  const auto logits = Random(5).floats(batch * vocab, 6.0f);
  const float temperature[] = {0.7f, 0.0f, 1.3f}, top_p[] = {0.9f, 0.5f, 1.0f}, min_p[] = {0.0f, 0.0f, 0.02f};
  const int32_t top_k[] = {0, 3, 40}, seed[] = {1, 7, 2, 7, 3, 7}, step[] = {4, 5, 6};
  std::vector<float> scores(logits.size());
  std::vector<int32_t> ids(batch);
  const QfWarpLogits args = {logits.data(), scores.data(), temperature, top_k, top_p, min_p, batch, vocab, 1};
  CHECK_EQ(cpu::warp_logits(0, &args), QF_OK);
  const QfSample draw = {scores.data(), temperature, seed, step, ids.data(), batch, vocab};
  CHECK_EQ(cpu::sample(0, &draw), QF_OK);
  for (int64_t b = 0; b < batch; ++b) {
    const std::vector<float> row(logits.begin() + b * vocab, logits.begin() + (b + 1) * vocab);
    const auto alone = warp(row, temperature[b], top_k[b], top_p[b], min_p[b]);
    CHECK(std::equal(alone.begin(), alone.end(), scores.begin() + b * vocab));
    CHECK_EQ(ids[b], sample(alone, temperature[b], seed[b * 2], step[b]));
  }
}

TEST("top-k entries come in descending order, the lowest id first among equals") {
  for (const int64_t cols : {1, 7, 257, 3000}) {
    Random random(static_cast<uint64_t>(cols));
    std::vector<float> x(static_cast<size_t>(2 * cols));
    for (float& value : x) value = static_cast<float>(random.next() % 50) - 25.0f;
    for (const int64_t k : {int64_t{1}, std::min<int64_t>(cols, 20), std::min<int64_t>(cols, 200), cols}) {
      std::vector<float> values(static_cast<size_t>(2 * k));
      std::vector<int32_t> ids(values.size());
      const QfTopK args = {x.data(), values.data(), ids.data(), 2, cols, k};
      CHECK_EQ(cpu::top_k(0, &args), QF_OK);
      for (int64_t row = 0; row < 2; ++row) {
        std::vector<int32_t> order(static_cast<size_t>(cols));
        std::iota(order.begin(), order.end(), 0);
        const float* in = &x[row * cols];
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return in[a] > in[b]; });
        for (int64_t i = 0; i < k; ++i) {
          CHECK_EQ(ids[row * k + i], order[i]);
          CHECK_EQ(values[row * k + i], in[order[i]]);
        }
      }
    }
  }
}
