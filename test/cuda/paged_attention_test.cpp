// Paged attention and kv_append on the emulated GPU: against double precision, and that decode, prefill and chunked
// prefill give a row the same bits.
// Long because: one reference and one table of cases serve decode, prefill and their agreement.
#include <numeric>

#include "attention_reference.h"
#include "emulator/launch.h"
#include "float_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

struct Shape {
  int64_t heads = 2, kv_heads = 2, head_dim = 64, block_size = 16;
  int32_t dtype = QF_F16, cache_dtype = QF_F16;
};

// A cache whose blocks lie in scrambled order, filled through kv_append, and the q of every token of each sequence.
class Cache {
 public:
  // Room for `max_context` tokens in every row of the block table.
  Cache(const Shape& shape, const std::vector<int32_t>& contexts, int64_t max_context, uint64_t seed)
      : shape(shape),
        contexts(contexts),
        max_blocks((max_context + shape.block_size - 1) / shape.block_size),
        blocks(max_blocks * static_cast<int64_t>(contexts.size()) + 3),
        k_cache(shape.cache_dtype, std::vector<float>(static_cast<size_t>(slots() * kv_width()), 7.0f)),
        v_cache(shape.cache_dtype, std::vector<float>(static_cast<size_t>(slots() * kv_width()), 7.0f)),
        table(make_table(seed)) {
    Random random(seed);
    for (size_t b = 0; b < contexts.size(); ++b) {
      q.push_back(random.floats(contexts[b] * q_width()));
      k.push_back(random.floats(contexts[b] * kv_width()));
      v.push_back(random.floats(contexts[b] * kv_width()));
      append(b);
    }
  }

  int64_t slots() const { return blocks * shape.block_size; }
  int64_t q_width() const { return shape.heads * shape.head_dim; }
  int64_t kv_width() const { return shape.kv_heads * shape.head_dim; }
  int32_t slot(size_t b, int64_t token) const {
    const int32_t block = entries[b * static_cast<size_t>(max_blocks) + static_cast<size_t>(token / shape.block_size)];
    return static_cast<int32_t>(block * shape.block_size + token % shape.block_size);
  }

  const Shape shape;
  const std::vector<int32_t> contexts;
  const int64_t max_blocks, blocks;
  FloatArray k_cache, v_cache;
  std::vector<int32_t> entries;
  TypedArray<int32_t> table;
  std::vector<std::vector<float>> q, k, v;  // per sequence, as given

 private:
  // Entries past a context are never read: they point nowhere.
  std::vector<int32_t> make_table(uint64_t seed) {
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    Random random(seed + 100);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.next() % i]);
    entries.assign(contexts.size() * static_cast<size_t>(max_blocks), -9);
    size_t next = 0;
    for (size_t b = 0; b < contexts.size(); ++b) {
      for (int64_t i = 0; i * shape.block_size < contexts[b]; ++i) {
        entries[b * static_cast<size_t>(max_blocks) + static_cast<size_t>(i)] = order[next++];
      }
    }
    return entries;
  }

  void append(size_t b) {
    std::vector<int32_t> mapping;
    for (int64_t t = 0; t < contexts[b]; ++t) mapping.push_back(slot(b, t));
    const FloatArray new_k(shape.dtype, k[b]), new_v(shape.dtype, v[b]);
    const TypedArray<int32_t> device_mapping(mapping);
    QfKvAppend args = {};
    args.k = new_k.data();
    args.v = new_v.data();
    args.k_cache = k_cache.data();
    args.v_cache = v_cache.data();
    args.slot_mapping = device_mapping.data();
    args.tokens = contexts[b];
    args.kv_heads = shape.kv_heads;
    args.head_dim = shape.head_dim;
    args.k_stride = args.v_stride = kv_width();
    args.slots = slots();
    args.dtype = shape.dtype;
    args.cache_dtype = shape.cache_dtype;
    CHECK_EQ(backend().kv_append(0, &args), QF_OK);
    CHECK_EQ(backend().synchronize(0), QF_OK);
  }
};

// The last `tokens` tokens of what is then the first `context` of a sequence.
struct Piece {
  size_t sequence;
  int32_t tokens, context;
};

// A bias by distance, of distances from -70 to 0, or none.
struct Bias {
  static constexpr int64_t kSpan = 71, kOrigin = 70;
  explicit Bias(int64_t heads) : values(Random(77).floats(heads * kSpan, 2.0f)), device(values) {}
  std::vector<float> values;
  TypedArray<float> device;
};

// Runs the op on pieces of the cache's sequences, each as a batch entry; the o of all their tokens.
std::vector<float> attend(const Cache& cache, const std::vector<Piece>& pieces, float scale = 0.125f,
                          const Bias* bias = nullptr) {
  std::vector<int32_t> cu{0}, contexts, table;
  std::vector<float> q;
  for (const Piece& piece : pieces) {
    cu.push_back(cu.back() + piece.tokens);
    contexts.push_back(piece.context);
    const auto row = cache.entries.begin() + static_cast<int64_t>(piece.sequence) * cache.max_blocks;
    table.insert(table.end(), row, row + cache.max_blocks);
    const auto first = cache.q[piece.sequence].begin() + (piece.context - piece.tokens) * cache.q_width();
    q.insert(q.end(), first, first + piece.tokens * cache.q_width());
  }
  const Shape& shape = cache.shape;
  const FloatArray device_q(shape.dtype, q), o(shape.dtype, q.size());
  const TypedArray<int32_t> device_cu(cu), device_contexts(contexts), device_table(table);
  QfPagedAttention args = {};
  args.q = device_q.data();
  args.k_cache = cache.k_cache.data();
  args.v_cache = cache.v_cache.data();
  args.o = o.data();
  args.cu_seqlens_q = device_cu.data();
  args.block_table = device_table.data();
  args.context_lens = device_contexts.data();
  args.batch = static_cast<int64_t>(pieces.size());
  args.tokens = cu.back();
  args.heads = shape.heads;
  args.kv_heads = shape.kv_heads;
  args.head_dim = shape.head_dim;
  args.q_stride = cache.q_width();
  args.blocks = cache.blocks;
  args.block_size = shape.block_size;
  args.max_blocks = cache.max_blocks;
  if (bias != nullptr) {
    args.bias = bias->device.data();
    args.bias_span = Bias::kSpan;
    args.bias_origin = Bias::kOrigin;
  }
  args.scale = scale;
  args.dtype = shape.dtype;
  args.cache_dtype = shape.cache_dtype;
  const QfStatus status = backend().paged_attention(0, &args);
  if (status != QF_OK) fail(__FILE__, __LINE__, backend().last_error());
  return o.read();
}

std::vector<double> expected(const Cache& cache, const std::vector<Piece>& pieces, double scale = 0.125,
                             const Bias* bias = nullptr) {
  std::vector<double> all;
  for (const Piece& piece : pieces) {
    auto as_seen = [&](std::vector<float> values, bool cached) {
      for (float& value : values) {
        value = rounded(value, cache.shape.dtype);
        if (cached) value = rounded(value, cache.shape.cache_dtype);
      }
      return values;
    };
    ReferenceProblem p = {};
    p.len_q = piece.tokens;
    p.len_k = piece.context;
    p.heads = cache.shape.heads;
    p.kv_heads = cache.shape.kv_heads;
    p.head_dim = cache.shape.head_dim;
    p.scale = scale;
    p.mask = QF_MASK_CAUSAL;
    p.bias = bias == nullptr ? nullptr : bias->values.data();
    p.bias_span = Bias::kSpan;
    p.bias_origin = Bias::kOrigin;
    const auto q = as_seen(cache.q[piece.sequence], false), k = as_seen(cache.k[piece.sequence], true),
               v = as_seen(cache.v[piece.sequence], true);
    const auto o =
        reference_attention(p, q.data() + (piece.context - piece.tokens) * cache.q_width(), k.data(), v.data());
    all.insert(all.end(), o.begin(), o.end());
  }
  return all;
}

void check(const Cache& cache, const std::vector<Piece>& pieces, const char* what) {
  const double difference = max_difference(attend(cache, pieces), expected(cache, pieces));
  if (difference <= attention_tolerance(cache.shape.dtype)) return;
  fail(__FILE__, __LINE__,
       std::string(what) + " " + qf_dtype_name(cache.shape.dtype) + " head_dim " +
           std::to_string(cache.shape.head_dim) + ": off by " + std::to_string(difference));
}

std::vector<float> slice(const std::vector<float>& values, int64_t first, int64_t count) {
  return std::vector<float>(values.begin() + first, values.begin() + first + count);
}

}  // namespace

TEST("decode, chunk and prefill in one call, every head_dim and dtype") {
  for (const int64_t head_dim : {24, 40, 64, 80, 88, 96, 128}) {
    for (const int32_t dtype : {QF_F16, QF_BF16, QF_F32}) {
      Shape shape;
      shape.head_dim = head_dim;
      shape.heads = 2;
      shape.kv_heads = 1;
      shape.dtype = shape.cache_dtype = dtype;
      const Cache cache(shape, {66, 20, 9}, 80, 1);
      check(cache, {{0, 1, 66}, {1, 5, 20}, {2, 9, 9}}, "mixed");
    }
  }
}

TEST("a bias by distance, the same bits in decode, chunks and prefill, also beyond the table") {
  for (const int64_t head_dim : {24, 64, 80}) {
    for (const int32_t dtype : {QF_F16, QF_BF16, QF_F32}) {
      Shape shape;
      shape.head_dim = head_dim;
      shape.heads = 2;
      shape.kv_heads = 1;
      shape.dtype = shape.cache_dtype = dtype;
      const Cache cache(shape, {150, 20}, 320, 8);
      const Bias bias(shape.heads);
      const std::vector<Piece> pieces{{0, 1, 150}, {1, 5, 20}};
      const std::vector<float> mixed = attend(cache, pieces, 1.0f, &bias);
      const double difference = max_difference(mixed, expected(cache, pieces, 1.0, &bias));
      CHECK(difference <= attention_tolerance(dtype));
      const std::vector<float> prefill = attend(cache, {{0, 150, 150}}, 1.0f, &bias);
      CHECK(slice(prefill, 149 * cache.q_width(), cache.q_width()) == slice(mixed, 0, cache.q_width()));
    }
  }
}

TEST("activations and cache of different dtypes") {
  for (const int32_t dtype : {QF_F16, QF_BF16, QF_F32}) {
    for (const int32_t cache_dtype : {QF_F16, QF_BF16, QF_F32}) {
      Shape shape;
      shape.dtype = dtype;
      shape.cache_dtype = cache_dtype;
      shape.head_dim = 32;
      const Cache cache(shape, {35, 12}, 40, 2);
      check(cache, {{0, 1, 35}, {1, 12, 12}}, "mixed dtypes");
    }
  }
}

TEST("contexts that one CTA combines and contexts that many share") {
  for (const int32_t context : {1, 63, 64, 65, 255, 256, 257, 700}) {
    for (const int32_t dtype : {QF_F16, QF_F32}) {
      if (dtype == QF_F32 && context > 300) continue;
      Shape shape;
      shape.heads = shape.kv_heads = 1;
      shape.dtype = shape.cache_dtype = dtype;
      const Cache cache(shape, {context}, 1024, 3);
      check(cache, {{0, 1, context}}, "decode");
    }
  }
}

TEST("groups of query heads, also more than the 16 rows of a tile, and block sizes that are no power of two") {
  for (const int64_t heads : {5, 20}) {
    Shape shape;
    shape.heads = 2 * heads;
    shape.kv_heads = 2;
    shape.block_size = 12;
    const Cache cache(shape, {300, 3}, 320, 4);
    check(cache, {{0, 1, 300}, {1, 3, 3}}, "groups");
  }
}

TEST("a row has the same bits in decode, in chunks and in prefill, alone and in a batch, under every schedule") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    for (const int64_t head_dim : {32, 88}) {
      Shape shape;
      shape.heads = 2;
      shape.kv_heads = 1;
      shape.head_dim = head_dim;
      shape.dtype = shape.cache_dtype = dtype;
      const int32_t length = dtype == QF_F32 ? 70 : 330;
      const Cache cache(shape, {length, 40}, 512, 5);
      const int64_t width = cache.q_width();
      const std::vector<float> prefill = attend(cache, {{0, length, length}});
      for (const int32_t cut : {33, 65}) {
        CHECK(attend(cache, {{0, cut, cut}}) == slice(prefill, 0, cut * width));
        CHECK(attend(cache, {{0, length - cut, length}}) == slice(prefill, cut * width, (length - cut) * width));
      }
      for (const int32_t context : {1, 64, 70, 257, 330}) {
        if (context > length) continue;
        const std::vector<float> row = slice(prefill, (context - 1) * width, width);
        for (const uint64_t seed : {1, 2, 3}) {
          qformer::emulator::set_seed(seed);
          CHECK(attend(cache, {{0, 1, context}}) == row);
        }
        qformer::emulator::set_seed(1);
        const std::vector<float> batch = attend(cache, {{1, 7, 20}, {0, 1, context}, {1, 1, 40}});
        CHECK(slice(batch, 7 * width, width) == row);
        if (context > 1) CHECK(slice(attend(cache, {{0, 2, context}, {1, 1, 40}}), width, width) == row);
      }
    }
  }
}

TEST("few CTAs per row give the bits of many") {
  Shape shape;
  shape.heads = shape.kv_heads =
      40;  // more heads than the emulated device wants CTAs: each walks three rounds of blocks
  shape.head_dim = 8;
  const Cache cache(shape, {600}, 640, 10);
  const std::vector<float> row = attend(cache, {{0, 1, 600}});
  CHECK(max_difference(row, expected(cache, {{0, 1, 600}})) <= attention_tolerance(QF_F16));
  CHECK(slice(attend(cache, {{0, 2, 600}}), cache.q_width(), cache.q_width()) == row);
}

TEST("empty entries, an empty batch, and rows before the context") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    Shape shape;
    shape.dtype = shape.cache_dtype = dtype;
    const Cache cache(shape, {40, 6}, 48, 6);
    check(cache, {{0, 0, 40}, {1, 1, 6}, {0, 0, 0}, {0, 3, 40}}, "holes");
    CHECK(attend(cache, {}).empty());
    CHECK(attend(cache, {{0, 0, 40}}).empty());
  }
}

TEST("contexts and block tables that do not fit are an error") {
  for (const int32_t dtype : {QF_F16, QF_F32}) {
    const FloatArray q(dtype, std::vector<float>(4 * 64, 0.5f)), o(dtype, size_t{4 * 64});
    const FloatArray cache(dtype, std::vector<float>(4 * 16 * 64, 0.25f));
    auto status_of = [&](std::vector<int32_t> cu, std::vector<int32_t> contexts, std::vector<int32_t> table) {
      const TypedArray<int32_t> device_cu(cu), device_contexts(contexts), device_table(table);
      QfPagedAttention args = {};
      args.q = q.data();
      args.k_cache = args.v_cache = cache.data();
      args.o = o.data();
      args.cu_seqlens_q = device_cu.data();
      args.block_table = device_table.data();
      args.context_lens = device_contexts.data();
      args.batch = 2;
      args.tokens = 4;
      args.heads = args.kv_heads = 1;
      args.head_dim = args.q_stride = 64;
      args.blocks = 4;
      args.block_size = 16;
      args.max_blocks = 2;
      args.scale = 1.0f;
      args.dtype = args.cache_dtype = dtype;
      CHECK_EQ(backend().paged_attention(0, &args), QF_OK);
      return backend().synchronize(0);
    };
    CHECK_EQ(status_of({0, 1, 4}, {20, 3}, {0, 1, 2, -1}), QF_OK);
    CHECK_EQ(status_of({0, 1, 4}, {33, 3}, {0, 1, 2, 3}), QF_INVALID_ARGUMENT);
    CHECK_EQ(status_of({0, 1, 4}, {-1, 3}, {0, 1, 2, 3}), QF_INVALID_ARGUMENT);
    CHECK_EQ(status_of({0, 1, 4}, {20, 3}, {0, 4, 2, 3}), QF_INVALID_ARGUMENT);
    CHECK_EQ(status_of({0, 1, 4}, {20, 3}, {0, 1, -1, 3}), QF_INVALID_ARGUMENT);
    CHECK_EQ(status_of({0, 5, 4}, {20, 3}, {0, 1, 2, 3}), QF_INVALID_ARGUMENT);
    CHECK_EQ(status_of({0, 1, 3}, {20, 3}, {0, 1, 2, 3}), QF_INVALID_ARGUMENT);
    CHECK(std::string(backend().last_error()).find("paged") != std::string::npos);
    // An entry without new tokens is not looked at.
    CHECK_EQ(status_of({0, 0, 4}, {99, 4}, {9, 9, 0, 9}), QF_OK);
  }
}

TEST("kv_append converts, skips negative slots and reports those outside the cache") {
  for (const int64_t head_dim : {20, 7}) {
    for (const int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
      for (const int32_t cache_dtype : {QF_F32, QF_F16, QF_BF16}) {
        Random random(7);
        const int64_t width = 2 * head_dim, stride = width + 4, tokens = 5, slots = 9;
        const FloatArray k(dtype, random.floats(tokens * stride)), v(dtype, random.floats(tokens * stride));
        const std::vector<float> old(static_cast<size_t>(slots * width), 3.0f);
        const FloatArray k_cache(cache_dtype, old), v_cache(cache_dtype, old);
        const std::vector<int32_t> mapping{8, -1, 0, 4, -7};
        const TypedArray<int32_t> device_mapping(mapping);
        QfKvAppend args = {};
        args.k = k.data();
        args.v = v.data();
        args.k_cache = k_cache.data();
        args.v_cache = v_cache.data();
        args.slot_mapping = device_mapping.data();
        args.tokens = tokens;
        args.kv_heads = 2;
        args.head_dim = head_dim;
        args.k_stride = args.v_stride = stride;
        args.slots = slots;
        args.dtype = dtype;
        args.cache_dtype = cache_dtype;
        CHECK_EQ(backend().kv_append(0, &args), QF_OK);
        std::vector<float> want_k = old, want_v = old;
        for (size_t t = 0; t < mapping.size(); ++t) {
          for (int64_t i = 0; i < width && mapping[t] >= 0; ++i) {
            const auto from = static_cast<size_t>(static_cast<int64_t>(t) * stride + i);
            want_k[static_cast<size_t>(mapping[t] * width + i)] = rounded(k.values[from], cache_dtype);
            want_v[static_cast<size_t>(mapping[t] * width + i)] = rounded(v.values[from], cache_dtype);
          }
        }
        CHECK(k_cache.read() == want_k);
        CHECK(v_cache.read() == want_v);
        args.slots = 8;  // slot 8 is now outside
        CHECK_EQ(backend().kv_append(0, &args), QF_OK);
        CHECK_EQ(backend().synchronize(0), QF_INVALID_ARGUMENT);
        args.tokens = 0;
        CHECK_EQ(backend().kv_append(0, &args), QF_OK);
        CHECK_EQ(backend().synchronize(0), QF_OK);
      }
    }
  }
}

TEST("a captured decode step serves longer contexts and leaves its counters at zero") {
  Shape shape;
  shape.heads = shape.kv_heads = 1;
  const Cache cache(shape, {600}, 640, 8);
  const FloatArray q(QF_F16, slice(cache.q[0], 0, 64)), o(QF_F16, size_t{64});
  const TypedArray<int32_t> cu(std::vector<int32_t>{0, 1});
  TypedArray<int32_t> contexts(std::vector<int32_t>{1});
  QfPagedAttention args = {};
  args.q = q.data();
  args.k_cache = cache.k_cache.data();
  args.v_cache = cache.v_cache.data();
  args.o = o.data();
  args.cu_seqlens_q = cu.data();
  args.block_table = cache.table.data();
  args.context_lens = contexts.data();
  args.batch = args.tokens = 1;
  args.heads = args.kv_heads = 1;
  args.head_dim = args.q_stride = 64;
  args.blocks = cache.blocks;
  args.block_size = 16;
  args.max_blocks = cache.max_blocks;
  args.scale = 0.125f;
  args.dtype = args.cache_dtype = QF_F16;
  CHECK_EQ(backend().paged_attention(0, &args), QF_OK);  // loads the kernel
  CHECK_EQ(backend().capture_begin(0), QF_OK);
  CHECK_EQ(backend().paged_attention(0, &args), QF_OK);
  void* graph = nullptr;
  CHECK_EQ(backend().capture_end(0, &graph), QF_OK);
  for (const int32_t context : {300, 10, 600, 600, 257}) {
    contexts.write({context});
    CHECK_EQ(backend().graph_launch(0, graph), QF_OK);
    const std::vector<float> replayed = o.read();
    CHECK_EQ(backend().paged_attention(0, &args), QF_OK);
    CHECK(o.read() == replayed);
    ReferenceProblem p = {1, context, 1, 1, 64};
    p.scale = 0.125;
    std::vector<float> k = cache.k[0], v = cache.v[0];
    for (float& value : k) value = rounded(value, QF_F16);
    for (float& value : v) value = rounded(value, QF_F16);
    const auto want = reference_attention(p, q.values.data(), k.data(), v.data());
    CHECK(max_difference(replayed, want) <= attention_tolerance(QF_F16));
  }
  backend().graph_free(0, graph);
}

TEST("streams of keys and their combination are free of bank conflicts") {
  for (const int64_t head_dim : {32, 64, 80, 88, 96, 128}) {
    Shape shape;
    shape.heads = shape.kv_heads = 1;
    shape.head_dim = head_dim;
    const Cache cache(shape, {200}, 208, 9);
    qformer::emulator::count_bank_conflicts(true);
    qformer::emulator::counters() = {};
    check(cache, {{0, 1, 200}}, "conflicts");
    qformer::emulator::count_bank_conflicts(false);
    CHECK(qformer::emulator::counters().shared_wavefronts > 0);
    CHECK_EQ(qformer::emulator::counters().bank_conflicts, uint64_t{0});
  }
}
