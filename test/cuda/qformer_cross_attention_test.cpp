// The Q-Former's cross-attention block on the emulated GPU, fused and composed, against double precision.
#include <algorithm>
#include <cmath>

#include "attention_reference.h"
#include "emulator/launch.h"
#include "float_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

struct Problem {
  int64_t batch = 2, rows_per_batch = 7, num_query = 5, keys = 33, heads = 2, head_dim = 64, gap = 0;
  int32_t dtype = QF_F16, w_dtype = QF_F16, math = QF_MATH_F32;
  int64_t first = 0;  // sequence of the data that comes first: a batch of one may hold any of them
};

struct Outcome {
  std::vector<float> y;
  std::vector<double> expected;
};

std::vector<double> product(const std::vector<double>& x, const std::vector<float>& w, const std::vector<float>& bias,
                            int64_t rows, int64_t hidden) {
  std::vector<double> y;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < hidden; ++n) {
      double sum = bias[static_cast<size_t>(n)];
      for (int64_t k = 0; k < hidden; ++k) {
        sum += x[static_cast<size_t>(r * hidden + k)] * w[static_cast<size_t>(n * hidden + k)];
      }
      y.push_back(sum);
    }
  }
  return y;
}

void append_expected(const Problem& p, const QfQFormerCrossAttention& a, const float* x, const std::vector<float>& k,
                     const std::vector<float>& v, const std::vector<float>& wq, const std::vector<float>& wo,
                     const std::vector<std::vector<float>>& vectors, std::vector<double>& all) {
  const int64_t hidden = p.heads * p.head_dim;
  const std::vector<double> rows(x, x + p.num_query * hidden);
  const auto q = product(rows, wq, vectors[0], p.num_query, hidden);
  const std::vector<float> q_floats(q.begin(), q.end());
  ReferenceProblem attend = {p.num_query, p.keys, p.heads, p.heads, p.head_dim};
  attend.scale = a.scale;
  const auto sum =
      product(reference_attention(attend, q_floats.data(), k.data(), v.data()), wo, vectors[1], p.num_query, hidden);
  for (int64_t r = 0; r < p.rows_per_batch; ++r) {
    std::vector<double> row;
    for (int64_t i = 0; i < hidden; ++i) {
      const double own = x[r * hidden + i];
      row.push_back(r < p.num_query ? own + sum[static_cast<size_t>(r * hidden + i)] : own);
    }
    double mean = 0.0, variance = 0.0;
    for (const double value : row) mean += value / static_cast<double>(hidden);
    for (const double value : row) variance += (value - mean) * (value - mean) / static_cast<double>(hidden);
    for (int64_t i = 0; i < hidden && r < p.num_query; ++i) {
      double& value = row[static_cast<size_t>(i)];
      value = (value - mean) / std::sqrt(variance + a.norm_eps) * vectors[2][static_cast<size_t>(i)] +
              vectors[3][static_cast<size_t>(i)];
    }
    all.insert(all.end(), row.begin(), row.end());
  }
}

Outcome run(const Problem& p) {
  const int64_t hidden = p.heads * p.head_dim, kv_stride = 2 * hidden + p.gap;
  const float spread = 1.0f / std::sqrt(static_cast<float>(hidden));
  Random weights(2);
  const FloatArray wq(p.w_dtype, weights.floats(hidden * hidden, 2 * spread));
  const FloatArray wo(p.w_dtype, weights.floats(hidden * hidden, 2 * spread));
  std::vector<std::vector<float>> vectors;
  for (int i = 0; i < 4; ++i) vectors.push_back(weights.floats(hidden, 0.5f));
  for (float& weight : vectors[2]) weight += 1.0f;
  std::vector<float> x_data, kv_data;
  for (int64_t b = p.first; b < p.first + p.batch; ++b) {
    Random random(static_cast<uint64_t>(10 + b));
    const auto x = random.floats(p.rows_per_batch * hidden), kv = random.floats(p.keys * kv_stride);
    x_data.insert(x_data.end(), x.begin(), x.end());
    kv_data.insert(kv_data.end(), kv.begin(), kv.end());
  }
  const FloatArray x(p.dtype, x_data), kv(p.dtype, kv_data), y(p.dtype, x_data.size());
  const TypedArray<float> bq(vectors[0]), bo(vectors[1]), norm_weight(vectors[2]), norm_bias(vectors[3]);
  QfQFormerCrossAttention args = {};
  args.x = x.data();
  args.wq = wq.data();
  args.bq = bq.data();
  args.k = kv.data();
  args.v = kv.at(hidden);
  args.wo = wo.data();
  args.bo = bo.data();
  args.norm_weight = norm_weight.data();
  args.norm_bias = norm_bias.data();
  args.y = y.data();
  args.batch = p.batch;
  args.rows_per_batch = p.rows_per_batch;
  args.num_query = p.num_query;
  args.keys = p.keys;
  args.heads = p.heads;
  args.head_dim = p.head_dim;
  args.kv_stride = kv_stride;
  args.scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim));
  args.norm_eps = 1e-5f;
  args.dtype = p.dtype;
  args.w_dtype = p.w_dtype;
  args.math = p.math;
  const QfStatus status = backend().qformer_cross_attention(0, &args);
  if (status != QF_OK) fail(__FILE__, __LINE__, backend().last_error());
  Outcome outcome;
  outcome.y = y.read();
  for (int64_t b = 0; b < p.batch; ++b) {
    std::vector<float> k, v;
    for (int64_t j = 0; j < p.keys; ++j) {
      const auto row = kv.values.begin() + (b * p.keys + j) * kv_stride;
      k.insert(k.end(), row, row + hidden);
      v.insert(v.end(), row + hidden, row + 2 * hidden);
    }
    append_expected(p, args, x.values.data() + b * p.rows_per_batch * hidden, k, v, wq.values, wo.values, vectors,
                    outcome.expected);
  }
  return outcome;
}

// q, the weights of the softmax, the attention's output and y are each rounded to the dtype once. With entries of size
// 1 in, sums of variance about 1 and a norm that divides by about 0.8, that is a handful of roundings of values up
// to 4.
double tolerance(int32_t dtype) { return dtype == QF_F32 ? 2e-5 : 6 * roundoff(dtype); }

void check(const Problem& p, const char* what) {
  const Outcome outcome = run(p);
  const double difference = max_difference(outcome.y, outcome.expected);
  const double limit = p.math == QF_MATH_BF16 ? tolerance(QF_BF16) : tolerance(p.dtype);
  if (difference <= limit) return;
  fail(__FILE__, __LINE__,
       std::string(what) + " " + qf_dtype_name(p.dtype) + " head_dim " + std::to_string(p.head_dim) + ": off by " +
           std::to_string(difference));
}

}  // namespace

TEST("fused: 16-bit activations with heads of 64, all counts of queries and keys") {
  for (const int32_t dtype : {QF_F16, QF_BF16}) {
    for (const int64_t queries : {1, 16, 33}) {
      for (const int64_t keys : {1, 65, 257}) {
        if (queries == 33 && keys == 65) continue;
        Problem p;
        p.dtype = p.w_dtype = dtype;
        p.batch = 1;
        p.num_query = queries;
        p.rows_per_batch = queries + 2;
        p.keys = keys;
        p.gap = 8;
        check(p, "fused");
      }
    }
  }
}

TEST("fused: more keys than one round of the warps takes") {
  Problem p;
  p.batch = 1;
  p.keys = 530;
  check(p, "rounds");
}

TEST("composed: f32 with weights of every dtype, other head sizes, 16-bit activations") {
  for (const int64_t head_dim : {8, 20, 64}) {
    for (const int32_t w_dtype : {QF_F32, QF_F16, QF_BF16}) {
      Problem p;
      p.dtype = QF_F32;
      p.w_dtype = w_dtype;
      p.head_dim = head_dim;
      check(p, "f32");
      p.math = QF_MATH_BF16;
      check(p, "bf16 products");
    }
    Problem small;
    small.head_dim = head_dim;
    small.gap = 3;
    check(small, "16-bit");
  }
}

TEST("rows past the queries pass unchanged, no query attends, no key, no batch") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    Problem p;
    p.dtype = p.w_dtype = dtype;
    p.num_query = 0;
    check(p, "no query");
    p.num_query = 7;
    check(p, "all rows attend");
    p.keys = 0;
    check(p, "no key");
    p.batch = 0;
    check(p, "no batch");
  }
}

TEST("a sequence has the same bits alone and in a batch, under every schedule") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    Problem batch;
    batch.dtype = batch.w_dtype = dtype;
    batch.batch = 3;
    const std::vector<float> all = run(batch).y;
    Problem alone = batch;
    alone.batch = 1;
    const size_t size = all.size() / 3;
    for (const int64_t first : {0, 1, 2}) {
      alone.first = first;
      for (const uint64_t seed : {1, 2, 3}) {
        qformer::emulator::set_seed(seed);
        const auto begin = all.begin() + static_cast<int64_t>(size) * first;
        CHECK(run(alone).y == std::vector<float>(begin, begin + static_cast<int64_t>(size)));
      }
    }
    qformer::emulator::set_seed(1);
  }
}
