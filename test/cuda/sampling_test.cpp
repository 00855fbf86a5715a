// From logits to ids on the emulated GPU: penalties, warpers, draw and top-k give the CPU backend's scores and ids.
#include <algorithm>
#include <functional>
#include <limits>

#include "cpu/cpu_backend.h"
#include "device_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

const QfBackend& cpu() { return *qformer::cpu::cpu_backend(); }

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void check_bits(const std::vector<float>& actual, const std::vector<float>& expected, const std::string& what) {
  if (same_bits(actual, expected)) return;
  size_t i = 0;
  while (i < actual.size() && memcmp(&actual[i], &expected[i], sizeof(float)) == 0) ++i;
  fail(__FILE__, __LINE__,
       what + ": first difference at " + std::to_string(i) + ": got " + std::to_string(actual[i]) + ", the CPU has " +
           std::to_string(expected[i]));
}

struct Rule {
  float temperature = 1;
  int32_t top_k = 0;
  float top_p = 1, min_p = 0;
};

// Rows of logits with one rule each, and what both backends make of them.
struct Batch {
  int64_t vocab;
  std::vector<float> logits;
  std::vector<Rule> rules;
  int64_t keep = 1;
  bool in_place = false;
};

template <class T>
std::vector<T> column(const std::vector<Rule>& rules, T Rule::*field) {
  std::vector<T> values;
  for (const Rule& rule : rules) values.push_back(rule.*field);
  return values;
}

struct Outcome {
  std::vector<float> scores;
  std::vector<int32_t> ids;
};

std::vector<int32_t> seeds_of(size_t batch) {
  std::vector<int32_t> seeds;
  for (size_t i = 0; i < batch; ++i) seeds.insert(seeds.end(), {static_cast<int32_t>(i * 7919 + 3), -5});
  return seeds;
}

std::vector<int32_t> steps_of(size_t batch, int32_t first) {
  std::vector<int32_t> steps(batch);
  for (size_t i = 0; i < batch; ++i) steps[i] = first + static_cast<int32_t>(i);
  return steps;
}

Outcome run_on_cpu(const Batch& b, int32_t step) {
  const auto count = static_cast<int64_t>(b.rules.size());
  const auto temperature = column(b.rules, &Rule::temperature), top_p = column(b.rules, &Rule::top_p),
             min_p = column(b.rules, &Rule::min_p);
  const auto top_k = column(b.rules, &Rule::top_k);
  const auto seed = seeds_of(b.rules.size()), steps = steps_of(b.rules.size(), step);
  Outcome out = {std::vector<float>(b.logits.size()), std::vector<int32_t>(b.rules.size(), -7)};
  const QfWarpLogits warp = {b.logits.data(), out.scores.data(), temperature.data(),
                             top_k.data(),    top_p.data(),      min_p.data(),
                             count,           b.vocab,           b.keep};
  CHECK_EQ(cpu().warp_logits(0, &warp), QF_OK);
  const QfSample draw = {
      out.scores.data(), temperature.data(), seed.data(), steps.data(), out.ids.data(), count, b.vocab};
  CHECK_EQ(cpu().sample(0, &draw), QF_OK);
  return out;
}

Outcome run_on_gpu(const Batch& b, int32_t step) {
  const auto count = static_cast<int64_t>(b.rules.size());
  const DeviceArray logits(b.logits, QF_F32), scores(std::vector<float>(b.logits.size(), NAN), QF_F32);
  const DeviceArray temperature(column(b.rules, &Rule::temperature), QF_F32),
      top_p(column(b.rules, &Rule::top_p), QF_F32), min_p(column(b.rules, &Rule::min_p), QF_F32);
  const DeviceInts top_k(column(b.rules, &Rule::top_k)), seed(seeds_of(b.rules.size())),
      steps(steps_of(b.rules.size(), step));
  const DeviceBytes ids(b.rules.size() * sizeof(int32_t));
  const DeviceArray& warped = b.in_place ? logits : scores;
  const QfWarpLogits warp = {logits.floats(), warped.floats(), temperature.floats(),
                             top_k.data(),    top_p.floats(),  min_p.floats(),
                             count,           b.vocab,         b.keep};
  CHECK_EQ(backend().warp_logits(0, &warp), QF_OK);
  const QfSample draw = {
      warped.floats(), temperature.floats(), seed.data(), steps.data(), static_cast<int32_t*>(ids.data()), count,
      b.vocab};
  CHECK_EQ(backend().sample(0, &draw), QF_OK);
  Outcome out = {warped.read(), std::vector<int32_t>(b.rules.size())};
  const auto bytes = ids.download();
  memcpy(out.ids.data(), bytes.data(), bytes.size());
  return out;
}

void check_alike(const Batch& b, const std::string& what, int32_t step = 0) {
  const Outcome expected = run_on_cpu(b, step), actual = run_on_gpu(b, step);
  check_bits(actual.scores, expected.scores, what);
  for (size_t i = 0; i < b.rules.size(); ++i) CHECK_EQ(actual.ids[i], expected.ids[i]);
}

std::vector<Rule> every_rule() {
  return {{0, 5, 0.5f, 0.1f}, {1, 0, 1, 0},       {0.7f, 0, 1, 0},       {1, 1, 1, 0},           {1, 40, 1, 0},
          {1, 0, 0.9f, 0},    {1.3f, 0, 0.5f, 0}, {1, 0, 0.001f, 0},     {1, 0, 0.999f, 0},      {1, 0, 0, 0},
          {1, 0, 1, 0.05f},   {0.8f, 0, 1, 0.5f}, {1, 50, 0.95f, 0.01f}, {0.6f, 20, 0.8f, 0.2f}, {2, 1000000, 0.9f, 0},
          {1, 3, 0.3f, 0.9f}, {1, 0, -0.5f, 1.5f}};
}

std::vector<float> repeated(const std::vector<float>& row, size_t times) {
  std::vector<float> rows;
  for (size_t i = 0; i < times; ++i) rows.insert(rows.end(), row.begin(), row.end());
  return rows;
}

}  // namespace

TEST("scores and ids are the CPU's for every rule and vocabulary") {
  const auto rules = every_rule();
  for (const int64_t vocab : {1, 7, 257, 1408, 5000}) {
    const auto logits = Random(static_cast<uint64_t>(vocab)).floats(vocab * static_cast<int64_t>(rules.size()), 9.0f);
    for (const int64_t keep : {1, 2, 30}) {
      check_alike({vocab, logits, rules, keep}, "vocabulary " + std::to_string(vocab), static_cast<int32_t>(vocab));
    }
  }
}

TEST("a vocabulary of 32000 is warped and drawn as on the CPU, in place too") {
  const std::vector<Rule> rules = {{1, 0, 1, 0}, {0.7f, 50, 0.9f, 0}, {0, 0, 1, 0}, {1, 0, 0.95f, 0.02f}};
  const auto logits = Random(11).floats(4 * 32000, 12.0f);
  check_alike({32000, logits, rules}, "apart");
  check_alike({32000, logits, rules, 1, true}, "in place");
}

TEST("equal scores are kept and dropped as on the CPU") {
  const auto rules = every_rule();
  for (const int64_t vocab : {4, 100, 1500}) {
    Random random(static_cast<uint64_t>(vocab));
    std::vector<float> row(static_cast<size_t>(vocab));
    for (float& value : row) value = static_cast<float>(random.next() % 5) - 2.0f;  // zeros of both signs among them
    row[1] = -0.0f;
    for (const int64_t keep : {1, 3}) {
      check_alike({vocab, repeated(row, rules.size()), rules, keep}, "five values");
      check_alike({vocab, repeated(std::vector<float>(row.size(), 1.0f), rules.size()), rules, keep}, "one value");
    }
  }
}

TEST("banned scores stay out, and rows with NaN, infinity or nothing finite give no token") {
  const auto rules = every_rule();
  const auto count = rules.size();
  auto row = Random(5).floats(300, 4.0f);
  for (size_t i = 0; i < 290; ++i) row[i] = -kInf;
  check_alike({300, repeated(row, count), rules}, "banned");
  const std::vector<std::function<void(std::vector<float>&)>> spoil = {
      [](auto& x) { x[17] = NAN; }, [](auto& x) { x[299] = kInf; },
      [](auto& x) { std::fill(x.begin(), x.end(), -kInf); }, [](auto& x) { std::fill(x.begin(), x.end(), NAN); }};
  for (const auto& change : spoil) {
    auto bad = Random(6).floats(300, 4.0f);
    change(bad);
    const Outcome out = run_on_gpu({300, repeated(bad, count), rules}, 0);
    for (const int32_t id : out.ids) CHECK_EQ(id, -1);
  }
  // one bad row does not touch its neighbours
  auto rows = Random(6).floats(2 * 300, 4.0f);
  rows[3] = NAN;
  const Batch mixed = {300, rows, {{1, 5, 0.9f, 0}, {1, 5, 0.9f, 0}}};
  CHECK_EQ(run_on_gpu(mixed, 0).ids[1], run_on_cpu(mixed, 0).ids[1]);
}

TEST("every number draws the CPU's token") {
  const int64_t vocab = 1000;
  const auto row = Random(8).floats(vocab, 3.0f);
  for (int32_t step = 0; step < 200; step += 40) {
    check_alike({vocab, repeated(row, 40), std::vector<Rule>(40, Rule{1, 0, 1, 0})}, "steps", step);
  }
}

TEST("a row is warped and drawn to the same alone and in a batch") {
  const Rule rule = {0.9f, 30, 0.9f, 0.01f};
  const auto logits = Random(9).floats(3 * 257, 6.0f);
  const Outcome all = run_on_gpu({257, logits, {rule, rule, rule}}, 5);
  const Outcome first = run_on_gpu({257, {logits.begin(), logits.begin() + 257}, {rule}}, 5);
  CHECK(std::equal(first.scores.begin(), first.scores.end(), all.scores.begin()));
  CHECK_EQ(first.ids[0], all.ids[0]);
}

TEST("penalties count a repeated id once, bans win, and ids outside the vocabulary are ignored") {
  const int64_t vocab = 500, batch = 3;
  auto logits = Random(12).floats(batch * vocab, 5.0f);
  Random random(13);
  std::vector<int32_t> history(700), banned = {3, 3, 499, 1000, -1, 7};
  for (int32_t& id : history) id = static_cast<int32_t>(random.next() % 560) - 30;
  const std::vector<int32_t> cu_history = {0, 600, 600, 700}, cu_banned = {0, 2, 6, 6};
  const std::vector<float> penalty = {1.3f, 1.2f, 1.0f};
  const DeviceArray scores(logits, QF_F32), factor(penalty, QF_F32);
  const DeviceInts past(history), past_offsets(cu_history), bans(banned), ban_offsets(cu_banned);
  QfPenalizeLogits args = {logits.data(),
                           history.data(),
                           cu_history.data(),
                           banned.data(),
                           cu_banned.data(),
                           penalty.data(),
                           batch,
                           vocab,
                           700,
                           6};
  CHECK_EQ(cpu().penalize_logits(0, &args), QF_OK);
  args.logits = scores.floats();
  args.history = past.data();
  args.cu_history = past_offsets.data();
  args.banned = bans.data();
  args.cu_banned = ban_offsets.data();
  args.repetition_penalty = factor.floats();
  CHECK_EQ(backend().penalize_logits(0, &args), QF_OK);
  check_bits(scores.read(), logits, "penalties");
}

TEST("offsets that fall or pass the end of the ids are reported and touch nothing") {
  const std::vector<float> logits = {1, 2, 3, 4}, penalty = {2, 2};
  const DeviceInts ids({0, 1}), good({0, 1, 2});
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{0, 2, 1}, std::vector<int32_t>{0, 1, 3}, std::vector<int32_t>{1, 1, 2}}) {
    const DeviceArray scores(logits, QF_F32), factor(penalty, QF_F32);
    const DeviceInts bad(offsets), nothing({0, 0, 0});
    const QfPenalizeLogits args = {scores.floats(), ids.data(), bad.data(), ids.data(), nothing.data(),
                                   factor.floats(), 2,          2,          2,          2};
    CHECK_EQ(backend().penalize_logits(0, &args), QF_OK);
    CHECK_EQ(backend().synchronize(0), QF_INVALID_ARGUMENT);
  }
}

TEST("top-k entries are the CPU's, from one to all of a row") {
  for (const int64_t cols : {1, 7, 257, 3000, 10000}) {
    Random random(static_cast<uint64_t>(cols));
    auto x = random.floats(2 * cols, 5.0f);
    for (int64_t i = 0; i < cols; ++i) x[static_cast<size_t>(i)] = static_cast<float>(random.next() % 50) - 25.0f;
    if (cols == 257) x[100] = NAN;
    for (const int64_t k : {int64_t{1}, std::min<int64_t>(cols, 20), std::min<int64_t>(cols, 300), cols}) {
      const auto count = static_cast<size_t>(2 * k);
      std::vector<float> values(count);
      std::vector<int32_t> ids(count), actual_ids(count);
      QfTopK args = {x.data(), values.data(), ids.data(), 2, cols, k};
      CHECK_EQ(cpu().top_k(0, &args), QF_OK);
      const DeviceArray in(x, QF_F32), out(std::vector<float>(count, NAN), QF_F32);
      const DeviceBytes out_ids(count * sizeof(int32_t));
      args = {in.floats(), out.floats(), static_cast<int32_t*>(out_ids.data()), 2, cols, k};
      CHECK_EQ(backend().top_k(0, &args), QF_OK);
      check_bits(out.read(), values, "top " + std::to_string(k) + " of " + std::to_string(cols));
      const auto bytes = out_ids.download();
      memcpy(actual_ids.data(), bytes.data(), bytes.size());
      CHECK(actual_ids == ids);
    }
  }
}

TEST("more entries than there are columns are refused, and empty batches are harmless") {
  const QfTopK bad = {nullptr, nullptr, nullptr, 1, 4, 5};
  CHECK_EQ(backend().top_k(0, &bad), QF_INVALID_ARGUMENT);
  const QfTopK none = {nullptr, nullptr, nullptr, 0, 4, 2}, zero = {nullptr, nullptr, nullptr, 3, 4, 0};
  CHECK_EQ(backend().top_k(0, &none), QF_OK);
  CHECK_EQ(backend().top_k(0, &zero), QF_OK);
  const QfWarpLogits warp = {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 10, 1};
  CHECK_EQ(backend().warp_logits(0, &warp), QF_OK);
  const QfSample draw = {nullptr, nullptr, nullptr, nullptr, nullptr, 0, 10};
  CHECK_EQ(backend().sample(0, &draw), QF_OK);
  const QfPenalizeLogits penalties = {};
  CHECK_EQ(backend().penalize_logits(0, &penalties), QF_OK);
}
