// Attention against double references, and the rule the engine stands on: a query row has the same bits in a full
// prefill, a chunked prefill and a decode step, over packed or paged keys, whatever else is in the batch.
// Long because: one table of cases runs through every property of the op.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/error.h"
#include "cpu/families.h"
#include "cpu/thread_pool.h"
#include "levels.h"
#include "random_data.h"
#include "test.h"

using namespace qformer;
using qformer::test::on_every_level;
using qformer::test::Random;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int64_t heads, kv_heads, head_dim;
};

struct Packed {
  Shape shape;
  std::vector<float> q, k, v;
  std::vector<int32_t> cu_q, cu_k;
};

Packed random_packed(Shape shape, std::vector<int32_t> cu_q, std::vector<int32_t> cu_k, uint64_t seed) {
  Random random(seed);
  const int64_t kv = shape.kv_heads * shape.head_dim;
  return {shape,
          random.floats(cu_q.back() * shape.heads * shape.head_dim),
          random.floats(cu_k.back() * kv),
          random.floats(cu_k.back() * kv),
          cu_q,
          cu_k};
}

QfAttention packed_args(const Packed& p, float* o, int32_t mask, int32_t num_query) {
  const auto [heads, kv_heads, d] = p.shape;
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  return {p.q.data(),
          p.k.data(),
          p.v.data(),
          nullptr,
          o,
          p.cu_q.data(),
          p.cu_k.data(),
          static_cast<int64_t>(p.cu_q.size()) - 1,
          p.cu_q.back(),
          p.cu_k.back(),
          heads,
          kv_heads,
          d,
          heads * d,
          kv_heads * d,
          kv_heads * d,
          0,
          0,
          scale,
          QF_F32,
          mask,
          num_query,
          QF_MATH_F32};
}

constexpr int32_t kMaths[] = {QF_MATH_F32, QF_MATH_BF16};

std::vector<float> attend(const Packed& p, int32_t mask, int32_t num_query = 0, int32_t math = QF_MATH_F32) {
  std::vector<float> o(p.q.size(), kNan);
  QfAttention args = packed_args(p, o.data(), mask, num_query);
  args.math = math;
  CHECK_EQ(cpu::attention(0, &args), QF_OK);
  return o;
}

bool sees(int32_t mask, int64_t i, int64_t j, int64_t rows, int64_t keys, int64_t num_query) {
  if (mask == QF_MASK_CAUSAL) return j <= i + keys - rows;
  if (mask == QF_MASK_ITC) return (i < num_query) == (j < num_query);
  if (mask == QF_MASK_ITG) return j <= std::max(i, num_query - 1);
  return true;
}

// One head of one row in double; o: [head_dim]
void attend_row(const Packed& p, int64_t sequence, int64_t row, int64_t head, int32_t mask, int64_t num_query,
                double* o) {
  const auto [heads, kv_heads, d] = p.shape;
  const int64_t q0 = p.cu_q[sequence], k0 = p.cu_k[sequence], rows = p.cu_q[sequence + 1] - q0,
                keys = p.cu_k[sequence + 1] - k0;
  const float* q = &p.q[((q0 + row) * heads + head) * d];
  const int64_t kv_head = head / (heads / kv_heads);
  std::fill(o, o + d, 0.0);
  double sum = 0, max = -1e300;
  std::vector<double> scores(static_cast<size_t>(keys));
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t e = 0; e < d; ++e)
      scores[j] += static_cast<double>(q[e]) * p.k[((k0 + j) * kv_heads + kv_head) * d + e];
    scores[j] /= std::sqrt(static_cast<double>(d));
    if (sees(mask, row, j, rows, keys, num_query)) max = std::max(max, scores[j]);
  }
  for (int64_t j = 0; j < keys; ++j) {
    if (!sees(mask, row, j, rows, keys, num_query)) continue;
    const double weight = std::exp(scores[j] - max);
    sum += weight;
    for (int64_t e = 0; e < d; ++e) o[e] += weight * p.v[((k0 + j) * kv_heads + kv_head) * d + e];
  }
  for (int64_t e = 0; e < d && sum > 0; ++e) o[e] /= sum;
}

// All rows in double, as attend returns them.
std::vector<double> exact(const Packed& p, int32_t mask, int64_t num_query = 0) {
  const auto [heads, kv_heads, d] = p.shape;
  std::vector<double> o(p.q.size());
  for (size_t b = 0; b + 1 < p.cu_q.size(); ++b) {
    for (int64_t row = 0; row < p.cu_q[b + 1] - p.cu_q[b]; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        attend_row(p, static_cast<int64_t>(b), row, head, mask, num_query, &o[((p.cu_q[b] + row) * heads + head) * d]);
      }
    }
  }
  return o;
}

double worst_error(const std::vector<float>& o, const std::vector<double>& expected) {
  double worst = 0;
  for (size_t i = 0; i < o.size(); ++i) {
    const double error = std::abs(o[i] - expected[i]);
    worst = error <= worst ? worst : error;  // NaN is kept
  }
  return worst;
}

double worst_error(const Packed& p, const std::vector<float>& o, int32_t mask, int64_t num_query = 0) {
  return worst_error(o, exact(p, mask, num_query));
}

float cut_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= 0xffff0000u;
  std::memcpy(&x, &bits, sizeof(bits));
  return x;
}

bool same_bits(const float* a, const float* b, size_t count) { return std::memcmp(a, b, count * sizeof(float)) == 0; }

// The keys and values of one sequence in a paged cache whose other slots hold NaN.
struct Cache {
  int64_t block_size, blocks;
  std::vector<uint8_t> k, v;
  std::vector<int32_t> table;
  int32_t dtype;
};

Cache paged_cache(const Packed& p, int64_t block_size, int32_t dtype) {
  const int64_t tokens = p.cu_k[1], width = p.shape.kv_heads * p.shape.head_dim;
  Cache cache;
  cache.block_size = block_size;
  cache.dtype = dtype;
  const int64_t used = (tokens + block_size - 1) / block_size;
  cache.blocks = used + 2;
  const size_t bytes = static_cast<size_t>(cache.blocks * block_size * width) * qf_dtype_size(dtype);
  cache.k.assign(bytes, 0xff);  // NaN in every float type
  cache.v.assign(bytes, 0xff);
  for (int64_t i = 0; i < used; ++i) cache.table.push_back(static_cast<int32_t>((i * 7 + 1) % used + 1));
  if (used % 7 == 0) {
    for (int64_t i = 0; i < used; ++i) cache.table[i] = static_cast<int32_t>(used - i);
  }
  std::vector<int32_t> slots;
  for (int64_t t = 0; t < tokens; ++t) {
    slots.push_back(static_cast<int32_t>(cache.table[t / block_size] * block_size + t % block_size));
  }
  const QfKvAppend args = {p.k.data(),
                           p.v.data(),
                           cache.k.data(),
                           cache.v.data(),
                           slots.data(),
                           tokens,
                           p.shape.kv_heads,
                           p.shape.head_dim,
                           width,
                           width,
                           cache.blocks * block_size,
                           QF_F32,
                           dtype};
  CHECK_EQ(cpu::kv_append(0, &args), QF_OK);
  return cache;
}

// Query rows [begin, end) of a one-sequence problem over the paged cache, as one step of a prefill.
std::vector<float> attend_paged(const Packed& p, const Cache& cache, int32_t begin, int32_t end, int32_t math) {
  const auto [heads, kv_heads, d] = p.shape;
  std::vector<float> o(static_cast<size_t>((end - begin) * heads * d), kNan);
  const int32_t cu_q[] = {0, end - begin}, context[] = {end};
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  const QfPagedAttention args = {&p.q[begin * heads * d],
                                 cache.k.data(),
                                 cache.v.data(),
                                 nullptr,
                                 o.data(),
                                 cu_q,
                                 cache.table.data(),
                                 context,
                                 1,
                                 end - begin,
                                 heads,
                                 kv_heads,
                                 d,
                                 heads * d,
                                 cache.blocks,
                                 cache.block_size,
                                 static_cast<int64_t>(cache.table.size()),
                                 0,
                                 0,
                                 scale,
                                 QF_F32,
                                 cache.dtype,
                                 math};
  CHECK_EQ(cpu::paged_attention(0, &args), QF_OK);
  return o;
}

}  // namespace

TEST("attention agrees with double for every mask, odd lengths, odd heads and grouped heads") {
  const Shape shapes[] = {{1, 1, 1}, {2, 2, 40}, {4, 2, 80}, {3, 3, 88}, {6, 1, 24}, {2, 1, 128}, {1, 1, 7}};
  uint64_t seed = 1;
  for (const Shape& shape : shapes) {
    for (int32_t mask = QF_MASK_FULL; mask <= QF_MASK_ITG; ++mask) {
      const Packed p = random_packed(shape, {0, 1, 8, 8, 75, 108}, {0, 1, 8, 8, 75, 108}, seed++);
      // rounding of sums over at most 67 keys of values below 1
      CHECK_NEAR(worst_error(p, attend(p, mask, 5), mask, 5), 0.0, 3e-6);
    }
  }
}

TEST("cross attention over 257 keys and causal rows at the end of a longer context agree with double") {
  const Packed cross = random_packed({2, 2, 88}, {0, 32, 33}, {0, 257, 514}, 3);
  CHECK_NEAR(worst_error(cross, attend(cross, QF_MASK_FULL), QF_MASK_FULL), 0.0, 3e-6);
  const Packed causal = random_packed({4, 2, 64}, {0, 3, 10}, {0, 131, 138}, 4);
  CHECK_NEAR(worst_error(causal, attend(causal, QF_MASK_CAUSAL), QF_MASK_CAUSAL), 0.0, 3e-6);
}

TEST("bf16 products agree with double on numbers that bf16 holds, but for the rounding of weights") {
  // a power of four as head_dim, or scaling would leave q with more digits than it has
  const Shape shapes[] = {{1, 1, 1}, {2, 2, 16}, {4, 2, 64}, {6, 1, 64}, {2, 1, 256}};
  uint64_t seed = 40;
  for (const Shape& shape : shapes) {
    for (int32_t mask = QF_MASK_FULL; mask <= QF_MASK_ITG; ++mask) {
      const int32_t end = shape.heads == 4 ? 700 : 141;  // one shape past blocks of keys: the reference is slow
      Packed p = random_packed(shape, {0, 1, 8, 8, 75, 108, end}, {0, 1, 8, 8, 75, 108, end}, seed++);
      for (auto* values : {&p.q, &p.k, &p.v}) {
        for (float& value : *values) value = cut_to_bf16(value);
      }
      const std::vector<double> expected = exact(p, mask, 5);
      // a weight is off by half a unit of 8 digits at most, a value is below 1
      on_every_level([&] { CHECK_NEAR(worst_error(attend(p, mask, 5, QF_MATH_BF16), expected), 0.0, 0x1p-9 + 3e-6); });
    }
  }
}

TEST("bf16 products stay near double for odd heads and the lengths of a picture") {
  const Packed cross = random_packed({2, 2, 88}, {0, 32, 33, 290}, {0, 257, 514, 771}, 3);
  const std::vector<double> expected = exact(cross, QF_MASK_FULL);
  on_every_level([&] {
    // q, k, v and the weights are rounded
    CHECK_NEAR(worst_error(attend(cross, QF_MASK_FULL, 0, QF_MATH_BF16), expected), 0.0, 4 * 0x1p-9);
  });
}

TEST("a row that sees no key gives zeros") {
  for (const int32_t math : kMaths) {
    const Packed more_rows = random_packed({2, 1, 40}, {0, 9}, {0, 3}, 5);
    const auto o = attend(more_rows, QF_MASK_CAUSAL, 0, math);
    for (int64_t i = 0; i < 6 * 80; ++i) CHECK_EQ(o[i], 0.0f);
    CHECK_NEAR(worst_error(more_rows, o, QF_MASK_CAUSAL), 0.0, math == QF_MATH_F32 ? 3e-6 : 4 * 0x1p-9);
    const Packed no_keys = random_packed({2, 1, 40}, {0, 2}, {0, 0}, 6);
    for (const float value : attend(no_keys, QF_MASK_FULL, 0, math)) CHECK_EQ(value, 0.0f);
  }
}

TEST("scores of several hundred do not overflow") {
  Packed p = random_packed({1, 1, 64}, {0, 3}, {0, 130}, 7);
  for (float& value : p.q) value *= 400.0f;
  for (float& value : p.k) value *= 10.0f;
  // a score's relative error of 1e-7 is 1e-4 of its exponential
  CHECK_NEAR(worst_error(p, attend(p, QF_MASK_FULL), QF_MASK_FULL), 0.0, 1e-3);
}

TEST("strided rows of a fused projection give the bits of dense rows") {
  const Packed p = random_packed({3, 3, 88}, {0, 70}, {0, 70}, 8);
  std::vector<float> fused(70 * 3 * 264), o(p.q.size());
  for (int64_t t = 0; t < 70; ++t) {
    std::copy_n(&p.q[t * 264], 264, &fused[t * 792]);
    std::copy_n(&p.k[t * 264], 264, &fused[t * 792 + 264]);
    std::copy_n(&p.v[t * 264], 264, &fused[t * 792 + 528]);
  }
  QfAttention args = packed_args(p, o.data(), QF_MASK_FULL, 0);
  args.q = fused.data();
  args.k = fused.data() + 264;
  args.v = fused.data() + 528;
  args.q_stride = args.k_stride = args.v_stride = 792;
  for (const int32_t math : kMaths) {
    args.math = math;
    CHECK_EQ(cpu::attention(0, &args), QF_OK);
    CHECK(same_bits(o.data(), attend(p, QF_MASK_FULL, 0, math).data(), o.size()));
  }
}

TEST("a row has the same bits in a prefill, in chunks and in decode steps, packed or paged, in every cache dtype") {
  const auto check = [](const Shape& shape, int32_t tokens, int32_t dtype, int32_t math) {
    const Packed p = random_packed(shape, {0, tokens}, {0, tokens}, 9);
    const auto row = static_cast<size_t>(shape.heads * shape.head_dim);
    const Cache cache = paged_cache(p, 16, dtype);
    const auto whole = attend_paged(p, cache, 0, tokens, math);
    if (dtype == QF_F32) CHECK(same_bits(whole.data(), attend(p, QF_MASK_CAUSAL, 0, math).data(), whole.size()));
    const Cache other_blocks = paged_cache(p, 7, dtype);
    CHECK(same_bits(whole.data(), attend_paged(p, other_blocks, 0, tokens, math).data(), whole.size()));
    for (const int32_t chunk : {1, 2, 5, 64, 101}) {
      for (int32_t begin = 0; begin < tokens; begin += chunk) {
        const int32_t end = std::min(begin + chunk, tokens);
        const auto part = attend_paged(p, cache, begin, end, math);
        CHECK(same_bits(part.data(), &whole[static_cast<size_t>(begin) * row], part.size()));
      }
    }
  };
  const auto check_math = [&](int32_t math) {
    for (const int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      for (const Shape& shape : {Shape{2, 2, 88}, Shape{8, 2, 64}, Shape{5, 1, 41}}) check(shape, 150, dtype, math);
    }
    check({2, 1, 24}, 570, QF_F32, math);  // more keys than a block of either kind
  };
  check_math(QF_MATH_F32);
  check_math(QF_MATH_BF16);
  if (cpu::find_kernels("amx") != nullptr) {  // in dot products too, which a matrix unit stands before
    cpu::override_kernels(cpu::find_kernels("avx512bf16"));
    check_math(QF_MATH_BF16);
    cpu::override_kernels(nullptr);
  }
}

TEST("a sequence has the same bits alone, in a batch and with any number of threads") {
  const Packed p = random_packed({4, 2, 80}, {0, 5, 205, 206, 270}, {0, 5, 205, 206, 270}, 10);
  const int32_t threads = cpu::pool_threads();
  for (int32_t i = 0; i < 8; ++i) {
    const int32_t mask = i / 2, math = kMaths[i % 2];
    cpu::set_pool_threads(1);
    const auto o = attend(p, mask, 32, math);
    cpu::set_pool_threads(3);
    CHECK(same_bits(o.data(), attend(p, mask, 32, math).data(), o.size()));
    for (size_t b = 0; b + 1 < p.cu_q.size(); ++b) {
      const int32_t begin = p.cu_q[b], end = p.cu_q[b + 1];
      const Packed alone = {p.shape,
                            {p.q.begin() + begin * 320, p.q.begin() + end * 320},
                            {p.k.begin() + begin * 160, p.k.begin() + end * 160},
                            {p.v.begin() + begin * 160, p.v.begin() + end * 160},
                            {0, end - begin},
                            {0, end - begin}};
      CHECK(same_bits(attend(alone, mask, 32, math).data(), &o[static_cast<size_t>(begin) * 320], alone.q.size()));
    }
  }
  cpu::set_pool_threads(threads);
}

TEST("keys a causal row does not see cannot poison it") {
  for (const int32_t math : kMaths) {
    for (const int64_t first : {9, 10}) {
      Packed p = random_packed({1, 1, 40}, {0, 20}, {0, 20}, 11);
      const auto clean = attend(p, QF_MASK_CAUSAL, 0, math);
      for (int64_t i = first * 40; i < 20 * 40; ++i) p.k[i] = p.v[i] = kNan;
      const auto o = attend(p, QF_MASK_CAUSAL, 0, math);
      CHECK(same_bits(clean.data(), o.data(), static_cast<size_t>(first) * 40));
      for (int64_t i = first * 40; i < 20 * 40; ++i) CHECK(std::isnan(o[i]));
    }
  }
}

TEST("an infinite value reaches the rows that see it, in either arithmetic") {
  for (const int32_t math : kMaths) {
    Packed p = random_packed({2, 1, 40}, {0, 20}, {0, 20}, 11);
    p.v[7 * 40 + 3] = -std::numeric_limits<float>::infinity();
    const auto o = attend(p, QF_MASK_CAUSAL, 0, math);
    for (int64_t row = 0; row < 40; ++row) {
      for (int64_t e = 0; e < 40; ++e) CHECK_EQ(std::isinf(o[row * 40 + e]), row / 2 >= 7 && e == 3);
    }
  }
}

TEST("offsets that do not rise to the number of tokens are refused") {
  Packed p = random_packed({1, 1, 8}, {0, 2, 4}, {0, 2, 4}, 12);
  std::vector<float> o(p.q.size());
  const QfAttention args = packed_args(p, o.data(), QF_MASK_FULL, 0);
  for (const std::vector<int32_t>& bad : {std::vector<int32_t>{0, 5, 4}, {1, 2, 4}, {0, 2, 3}, {0, -1, 4}}) {
    QfAttention wrong = args;
    wrong.cu_seqlens_q = bad.data();
    CHECK_EQ(cpu::attention(0, &wrong), QF_INVALID_ARGUMENT);
    CHECK(std::strstr(cpu::last_error(), "cuSeqlensQ") != nullptr);
    wrong = args;
    wrong.cu_seqlens_k = bad.data();
    CHECK_EQ(cpu::attention(0, &wrong), QF_INVALID_ARGUMENT);
    CHECK(std::strstr(cpu::last_error(), "cuSeqlensK") != nullptr);
  }
}

TEST("block numbers, context lengths and slots outside the cache are refused by name") {
  const Packed p = random_packed({2, 2, 8}, {0, 20}, {0, 20}, 13);
  Cache cache = paged_cache(p, 8, QF_F32);
  const int32_t cu_q[] = {0, 1};
  int32_t context[] = {20};
  float o[16];
  const QfPagedAttention args = {p.q.data(),
                                 cache.k.data(),
                                 cache.v.data(),
                                 nullptr,
                                 o,
                                 cu_q,
                                 cache.table.data(),
                                 context,
                                 1,
                                 1,
                                 2,
                                 2,
                                 8,
                                 16,
                                 cache.blocks,
                                 8,
                                 3,
                                 0,
                                 0,
                                 1.0f,
                                 QF_F32,
                                 QF_F32,
                                 QF_MATH_F32};
  CHECK_EQ(cpu::paged_attention(0, &args), QF_OK);
  for (const int32_t bad : {-1, static_cast<int32_t>(cache.blocks), INT32_MAX}) {
    cache.table[2] = bad;
    CHECK_EQ(cpu::paged_attention(0, &args), QF_INVALID_ARGUMENT);
    CHECK(std::strstr(cpu::last_error(), "blockTable[0][2]") != nullptr);
    context[0] = 16;  // the bad entry lies past the context
    CHECK_EQ(cpu::paged_attention(0, &args), QF_OK);
    context[0] = 20;
  }
  for (const int32_t bad : {-1, 25}) {
    context[0] = bad;
    CHECK_EQ(cpu::paged_attention(0, &args), QF_INVALID_ARGUMENT);
    CHECK(std::strstr(cpu::last_error(), "contextLens[0]") != nullptr);
  }
  const auto before = cache.k;
  const int32_t slots[] = {0, static_cast<int32_t>(cache.blocks * 8)};
  const QfKvAppend append = {p.k.data(), p.v.data(), cache.k.data(),   cache.v.data(), slots, 2, 2, 8,
                             16,         16,         cache.blocks * 8, QF_F32,         QF_F32};
  CHECK_EQ(cpu::kv_append(0, &append), QF_INVALID_ARGUMENT);
  CHECK(cache.k == before);
}

TEST("a negative slot is skipped") {
  const float k[] = {1, 2}, v[] = {3, 4};
  float k_cache[] = {9, 9}, v_cache[] = {9, 9};
  const int32_t slots[] = {-1, 0};
  const QfKvAppend args = {k, v, k_cache, v_cache, slots, 2, 1, 1, 1, 1, 2, QF_F32, QF_F32};
  CHECK_EQ(cpu::kv_append(0, &args), QF_OK);
  CHECK(k_cache[0] == 2 && k_cache[1] == 9 && v_cache[0] == 4 && v_cache[1] == 9);
}

TEST("rope turns pairs by the position's angle and keeps position zero") {
  for (const int64_t d : {2, 40, 88, 128}) {
    const int64_t heads = 3, stride = heads * d + 5;
    const auto x = Random(14).floats(4 * stride);
    const int32_t positions[] = {0, 1, 77, 2047};
    std::vector<float> inv_freq, y(static_cast<size_t>(4 * heads * d));
    for (int64_t j = 0; j < d / 2; ++j)
      inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(j) / static_cast<float>(d)));
    const QfRope args = {x.data(), positions, inv_freq.data(), y.data(), 4, heads, d, stride, QF_F32};
    CHECK_EQ(cpu::rope(0, &args), QF_OK);
    for (int64_t t = 0; t < 4; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const float *in = &x[t * stride + h * d], *out = &y[(t * heads + h) * d];
        for (int64_t j = 0; j < d / 2; ++j) {
          // the angle itself is an f32 product by contract
          const double angle = static_cast<float>(positions[t]) * inv_freq[j];
          CHECK_NEAR(out[j], in[j] * std::cos(angle) - in[j + d / 2] * std::sin(angle), 4e-7);
          CHECK_NEAR(out[j + d / 2], in[j + d / 2] * std::cos(angle) + in[j] * std::sin(angle), 4e-7);
          if (t == 0) CHECK_EQ(out[j], in[j]);
        }
      }
    }
  }
}
