// The varlen attention op on the emulated GPU, against double precision: every head size, masks, biases, strides, empty
// sequences, and that a row's bits do not depend on its neighbours.
#include "attention_reference.h"
#include "emulator/launch.h"
#include "float_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

// A batch of packed sequences with random contents.
struct Batch {
  std::vector<int32_t> len_q, len_k;
  int64_t heads = 2, kv_heads = 2, head_dim = 64;
  int32_t dtype = QF_F16, mask = QF_MASK_FULL, num_query = 0;
  bool fused = false;  // q, k and v are views of one [tokens, q | k | v] tensor
  bool biased = false;
  float scale = 0.0f;  // 0: 1 / sqrt(head_dim)
  uint64_t seed = 1;
};

std::vector<int32_t> offsets(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> result{0};
  for (const int32_t length : lengths) result.push_back(result.back() + length);
  return result;
}

// Rows of `width` elements, one for each of `tokens`, out of rows `stride` apart starting at `first`.
std::vector<float> gathered(const std::vector<float>& values, int64_t first, int64_t tokens, int64_t stride,
                            int64_t width) {
  std::vector<float> rows;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto begin = values.begin() + first + t * stride;
    rows.insert(rows.end(), begin, begin + width);
  }
  return rows;
}

// Distances from -29 to 17, so that longer sequences go beyond the table on both sides.
constexpr int64_t kBiasSpan = 47, kBiasOrigin = 29;

struct Outcome {
  QfStatus status;
  std::vector<float> o;
  std::vector<double> expected;
};

// Runs the op and the reference on the same data.
Outcome run(const Batch& batch) {
  Random random(batch.seed);
  const std::vector<int32_t> cu_q = offsets(batch.len_q), cu_k = offsets(batch.len_k);
  const int64_t q_width = batch.heads * batch.head_dim, kv_width = batch.kv_heads * batch.head_dim;
  const int64_t tokens_q = cu_q.back(), tokens_k = cu_k.back();
  const int64_t q_stride = batch.fused ? q_width + 2 * kv_width : q_width;
  const int64_t kv_stride = batch.fused ? q_stride : kv_width;
  FloatArray q(batch.dtype, random.floats(tokens_q * q_stride));
  FloatArray k(batch.dtype, random.floats(batch.fused ? 0 : tokens_k * kv_width));
  FloatArray v(batch.dtype, random.floats(batch.fused ? 0 : tokens_k * kv_width));
  FloatArray o(batch.dtype, static_cast<size_t>(tokens_q * q_width));
  const TypedArray<int32_t> device_cu_q(cu_q), device_cu_k(cu_k);
  const std::vector<float> bias = random.floats(batch.biased ? batch.heads * kBiasSpan : 0, 2.0f);
  const TypedArray<float> device_bias(bias);

  QfAttention args = {};
  args.q = q.data();
  args.k = batch.fused ? q.at(q_width) : k.data();
  args.v = batch.fused ? q.at(q_width + kv_width) : v.data();
  args.bias = batch.biased ? device_bias.data() : nullptr;
  args.o = o.data();
  args.cu_seqlens_q = device_cu_q.data();
  args.cu_seqlens_k = device_cu_k.data();
  args.batch = static_cast<int64_t>(batch.len_q.size());
  args.tokens_q = tokens_q;
  args.tokens_k = tokens_k;
  args.heads = batch.heads;
  args.kv_heads = batch.kv_heads;
  args.head_dim = batch.head_dim;
  args.q_stride = q_stride;
  args.k_stride = args.v_stride = kv_stride;
  args.bias_span = batch.biased ? kBiasSpan : 0;
  args.bias_origin = batch.biased ? kBiasOrigin : 0;
  args.scale = batch.scale != 0.0f ? batch.scale : 1.0f / std::sqrt(static_cast<float>(batch.head_dim));
  args.dtype = batch.dtype;
  args.mask = batch.mask;
  args.num_query = batch.num_query;

  Outcome outcome;
  outcome.status = backend().attention(0, &args);
  if (outcome.status == QF_OK) outcome.status = backend().synchronize(0);
  if (outcome.status != QF_OK) return outcome;
  outcome.o = o.read();
  const std::vector<float>& keys = batch.fused ? q.values : k.values;
  const std::vector<float>& values = batch.fused ? q.values : v.values;
  for (size_t b = 0; b < batch.len_q.size(); ++b) {
    ReferenceProblem p = {};
    p.len_q = batch.len_q[b];
    p.len_k = batch.len_k[b];
    p.heads = batch.heads;
    p.kv_heads = batch.kv_heads;
    p.head_dim = batch.head_dim;
    p.scale = args.scale;
    p.mask = batch.mask;
    p.num_query = batch.num_query;
    p.bias = batch.biased ? bias.data() : nullptr;
    p.bias_span = kBiasSpan;
    p.bias_origin = kBiasOrigin;
    const auto rows_q = gathered(q.values, cu_q[b] * q_stride, p.len_q, q_stride, q_width);
    const auto rows_k = gathered(keys, cu_k[b] * kv_stride + (batch.fused ? q_width : 0), p.len_k, kv_stride, kv_width);
    const auto rows_v =
        gathered(values, cu_k[b] * kv_stride + (batch.fused ? q_width + kv_width : 0), p.len_k, kv_stride, kv_width);
    const auto expected = reference_attention(p, rows_q.data(), rows_k.data(), rows_v.data());
    outcome.expected.insert(outcome.expected.end(), expected.begin(), expected.end());
  }
  return outcome;
}

void check(const Batch& batch, const char* what) {
  const Outcome outcome = run(batch);
  if (outcome.status != QF_OK) fail(__FILE__, __LINE__, std::string(what) + ": " + backend().last_error());
  const double difference = max_difference(outcome.o, outcome.expected);
  if (difference <= attention_tolerance(batch.dtype)) return;
  fail(__FILE__, __LINE__,
       std::string(what) + " " + qf_dtype_name(batch.dtype) + " head_dim " + std::to_string(batch.head_dim) +
           ": off by " + std::to_string(difference));
}

}  // namespace

TEST("every head_dim in every dtype, on and between the tensor-core sizes") {
  for (const int64_t head_dim : {8, 20, 24, 32, 40, 64, 72, 80, 88, 96, 120, 128, 160}) {
    for (const int32_t dtype : {QF_F16, QF_BF16, QF_F32}) {
      Batch batch;
      batch.len_q = {7, 1};
      batch.len_k = {33, 5};
      batch.head_dim = head_dim;
      batch.dtype = dtype;
      check(batch, "full");
    }
  }
}

TEST("lengths around the block of 64 keys and the tile of 64 rows") {
  for (const int32_t length : {1, 7, 33, 63, 64, 65, 129}) {
    for (const int32_t dtype : {QF_BF16, QF_F32}) {
      Batch batch;
      batch.len_q = batch.len_k = {length};
      batch.heads = batch.kv_heads = 1;
      batch.dtype = dtype;
      check(batch, "square");
    }
  }
}

TEST("an image of 257 patches with heads of 88, from one fused projection") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    Batch batch;
    batch.len_q = batch.len_k = {257};
    batch.heads = batch.kv_heads = 1;
    batch.head_dim = 88;
    batch.dtype = dtype;
    batch.fused = true;
    check(batch, "ViT");
  }
}

TEST("all masks, with more keys than rows and fewer") {
  for (const int32_t mask : {QF_MASK_FULL, QF_MASK_CAUSAL, QF_MASK_ITC, QF_MASK_ITG}) {
    for (const int32_t dtype : {QF_F16, QF_F32}) {
      Batch batch;
      batch.len_q = {70, 5, 90, 40};
      batch.len_k = {70, 68, 30, 40};
      batch.heads = batch.kv_heads = 1;
      batch.head_dim = 32;
      batch.dtype = dtype;
      batch.mask = mask;
      batch.num_query = 32;
      check(batch, "masks");
    }
  }
}

TEST("query heads that share a kv head") {
  for (const int32_t dtype : {QF_BF16, QF_F32}) {
    Batch batch;
    batch.len_q = {37, 3};
    batch.len_k = {37, 66};
    batch.heads = 6;
    batch.kv_heads = 2;
    batch.dtype = dtype;
    batch.mask = QF_MASK_CAUSAL;
    check(batch, "grouped");
  }
}

TEST("a bias per head and distance, the last value beyond the table") {
  for (const int64_t head_dim : {24, 64, 80}) {
    for (const int32_t dtype : {QF_F16, QF_F32}) {
      Batch batch;
      batch.len_q = {66, 3};
      batch.len_k = {66, 70};
      batch.head_dim = head_dim;
      batch.dtype = dtype;
      batch.biased = true;
      batch.scale = head_dim == 64 ? 1.0f : 0.0f;  // T5 does not scale
      check(batch, "bias");
    }
  }
}

TEST("strides and addresses that hold no whole chunks, and a negative scale") {
  Batch odd;
  odd.len_q = odd.len_k = {19};
  odd.head_dim = 20;  // rows of 3 * 40 elements: k and v start in the middle of a chunk
  odd.fused = true;
  check(odd, "odd stride");
  Batch negative;
  negative.len_q = negative.len_k = {19};
  negative.scale = -0.5f;
  check(negative, "negative scale");
}

TEST("large scores do not overflow") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    Batch batch;
    batch.len_q = batch.len_k = {67};
    batch.heads = batch.kv_heads = 1;
    batch.dtype = dtype;
    batch.scale = 50.0f;  // scores up to some hundreds: most weights vanish
    const Outcome outcome = run(batch);
    CHECK_EQ(outcome.status, QF_OK);
    // A score of 500 carries 2^-15 of f32 rounding, which the exponential turns into as much of the weight.
    CHECK(max_difference(outcome.o, outcome.expected) <= attention_tolerance(dtype) + 1e-3);
  }
}

TEST("empty sequences, an empty batch, and rows without keys, which give zeros") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    Batch holes;
    holes.len_q = {0, 4, 0, 3, 5};
    holes.len_k = {3, 0, 0, 2, 5};
    holes.dtype = dtype;
    holes.mask = QF_MASK_CAUSAL;
    check(holes, "holes");
    const Outcome outcome = run(holes);
    for (size_t i = 0; i < static_cast<size_t>(5 * holes.heads * holes.head_dim); ++i) CHECK_EQ(outcome.o[i], 0.0f);
    Batch nobody;
    nobody.dtype = dtype;
    CHECK_EQ(run(nobody).status, QF_OK);
    Batch silent;
    silent.len_q = {0, 0};
    silent.len_k = {2, 0};
    silent.dtype = dtype;
    CHECK_EQ(run(silent).status, QF_OK);
  }
}

TEST("a sequence has the same bits alone and in a batch, under every schedule") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    Batch alone;
    alone.len_q = {40};
    alone.len_k = {75};
    alone.heads = 2;
    alone.kv_heads = 1;
    alone.head_dim = 80;
    alone.dtype = dtype;
    alone.mask = QF_MASK_CAUSAL;
    const std::vector<float> expected = run(alone).o;
    for (const uint64_t seed : {2, 3, 4}) {
      qformer::emulator::set_seed(seed);
      CHECK(run(alone).o == expected);
    }
    qformer::emulator::set_seed(1);
    // Its data comes first in the stream of random numbers only alone, so the batch repeats the sequence itself.
    Random random(9);
    const int64_t q_width = alone.heads * alone.head_dim, kv_width = alone.head_dim;
    const auto own_q = random.floats(40 * q_width), own_k = random.floats(75 * kv_width),
               own_v = random.floats(75 * kv_width);
    auto attend = [&](int before, int after) {
      auto pack = [&](const std::vector<float>& own, int64_t width) {
        std::vector<float> all = random.floats(before * width);
        all.insert(all.end(), own.begin(), own.end());
        const auto rest = random.floats(after * width);
        all.insert(all.end(), rest.begin(), rest.end());
        return all;
      };
      const FloatArray q(dtype, pack(own_q, q_width)), k(dtype, pack(own_k, kv_width)), v(dtype, pack(own_v, kv_width));
      const FloatArray o(dtype, q.size());
      const TypedArray<int32_t> cu_q(std::vector<int32_t>{0, before, before + 40, before + 40 + after});
      const TypedArray<int32_t> cu_k(std::vector<int32_t>{0, before, before + 75, before + 75 + after});
      QfAttention args = {};
      args.q = q.data();
      args.k = k.data();
      args.v = v.data();
      args.o = o.data();
      args.cu_seqlens_q = cu_q.data();
      args.cu_seqlens_k = cu_k.data();
      args.batch = 3;
      args.tokens_q = 40 + before + after;
      args.tokens_k = 75 + before + after;
      args.heads = 2;
      args.kv_heads = 1;
      args.head_dim = 80;
      args.q_stride = q_width;
      args.k_stride = args.v_stride = kv_width;
      args.scale = 0.1f;
      args.dtype = dtype;
      args.mask = QF_MASK_CAUSAL;
      CHECK_EQ(backend().attention(0, &args), QF_OK);
      const std::vector<float> all = o.read();
      return std::vector<float>(all.begin() + before * q_width, all.begin() + (before + 40) * q_width);
    };
    const std::vector<float> first = attend(0, 0);
    CHECK(attend(3, 0) == first);
    CHECK(attend(17, 29) == first);
  }
}

TEST("offsets that do not fit the tensors are an error") {
  const FloatArray q(QF_F16, std::vector<float>(4 * 64, 0.5f)), o(QF_F16, size_t{4 * 64});
  QfAttention args = {};
  args.q = args.k = args.v = q.data();
  args.o = o.data();
  args.batch = 2;
  args.tokens_q = args.tokens_k = 4;
  args.heads = args.kv_heads = 1;
  args.head_dim = args.q_stride = args.k_stride = args.v_stride = 64;
  args.scale = 1.0f;
  const std::vector<int32_t> good{0, 2, 4};
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    args.dtype = dtype;
    args.head_dim = args.q_stride = args.k_stride = args.v_stride = dtype == QF_F16 ? 64 : 32;
    for (const auto& bad : {std::vector<int32_t>{1, 2, 4}, {0, 3, 2}, {0, 2, 5}, {0, -1, 4}, {0, 2, 3}}) {
      for (const bool in_keys : {false, true}) {
        const TypedArray<int32_t> cu_q(in_keys ? good : bad), cu_k(in_keys ? bad : good);
        args.cu_seqlens_q = cu_q.data();
        args.cu_seqlens_k = cu_k.data();
        CHECK_EQ(backend().attention(0, &args), QF_OK);
        CHECK_EQ(backend().synchronize(0), QF_INVALID_ARGUMENT);
        CHECK(std::string(backend().last_error()).find("attention") != std::string::npos);
      }
    }
    const TypedArray<int32_t> cu(good);
    args.cu_seqlens_q = args.cu_seqlens_k = cu.data();
    CHECK_EQ(backend().attention(0, &args), QF_OK);
    CHECK_EQ(backend().synchronize(0), QF_OK);
  }
}

TEST("fragments are read and results staged without bank conflicts") {
  for (const int64_t head_dim : {32, 64, 80, 88, 96, 128}) {
    Batch batch;
    batch.len_q = batch.len_k = {65};
    batch.heads = batch.kv_heads = 1;
    batch.head_dim = head_dim;
    qformer::emulator::count_bank_conflicts(true);
    qformer::emulator::counters() = {};
    check(batch, "conflicts");
    qformer::emulator::count_bank_conflicts(false);
    CHECK(qformer::emulator::counters().shared_wavefronts > 0);
    CHECK_EQ(qformer::emulator::counters().bank_conflicts, uint64_t{0});
  }
}
