// qkv_append on the emulated GPU has the bits of the ops it stands for, in one kernel where tokens are few.
#include <string>

#include "device_array.h"
#include "emulator/launch.h"
#include "random_data.h"

using namespace qformer;
using namespace qformer::test;

namespace {

struct Shape {
  int64_t m, k = 96, heads = 4, kv_heads = 2, head_dim = 64;
  int32_t dtype = QF_F16, w_dtype = QF_F16, cache_dtype = QF_F16;
  int32_t math = QF_MATH_F32;
  int64_t pad_x = 0;
  size_t shift_w = 0;  // elements before the first row

  int64_t width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  int64_t slots() const { return m + 5; }
};

std::string describe(const Shape& s) {
  return "m " + std::to_string(s.m) + " k " + std::to_string(s.k) + " heads " + std::to_string(s.heads) + "/" +
         std::to_string(s.kv_heads) + " x " + std::to_string(s.head_dim) + " " + qf_dtype_name(s.dtype) + "/" +
         qf_dtype_name(s.w_dtype) + "/" + qf_dtype_name(s.cache_dtype);
}

void succeed(QfStatus status) {
  if (status != QF_OK) fail(__FILE__, __LINE__, backend().last_error());
}

struct Results {
  std::vector<uint8_t> q, k_cache, v_cache;
};

class Problem {
 public:
  explicit Problem(const Shape& s, uint64_t seed = 1)
      : s_(s),
        random_(seed),
        x_(strided(rounded(random_.floats(s.m * s.k, 2.0f), s.dtype), s.m, s.k, s.k + s.pad_x), s.dtype),
        norm_(random_.floats(s.k, 1.5f), QF_F32),
        wq_(random_.floats(s.width() * s.k, 0.2f), s.w_dtype, s.shift_w),
        wk_(random_.floats(s.kv_width() * s.k, 0.2f), s.w_dtype, s.shift_w),
        wv_(random_.floats(s.kv_width() * s.k, 0.2f), s.w_dtype, s.shift_w),
        inv_freq_(frequencies(s.head_dim), QF_F32),
        positions_(numbers([](int64_t t) { return t * t * 11 + (t == 1 ? 3000 : 0); })),
        // Backwards; the third token is not stored.
        slots_(numbers([&](int64_t t) { return t == 2 ? -1 : s.slots() - 1 - t; })) {}

  QfQkvAppend args() const {
    QfQkvAppend args{};
    args.x = x_.data();
    args.norm_weight = norm_.floats();
    args.wq = wq_.data();
    args.wk = wk_.data();
    args.wv = wv_.data();
    args.positions = positions_.data();
    args.inv_freq = inv_freq_.floats();
    args.slot_mapping = slots_.data();
    args.m = s_.m;
    args.k = s_.k;
    args.ldx = s_.k + s_.pad_x;
    args.heads = s_.heads;
    args.kv_heads = s_.kv_heads;
    args.head_dim = s_.head_dim;
    args.slots = s_.slots();
    args.norm_eps = 1e-5f;
    args.dtype = s_.dtype;
    args.w_dtype = s_.w_dtype;
    args.cache_dtype = s_.cache_dtype;
    args.math = s_.math;
    return args;
  }

  Results fused() const {
    const Outputs out(s_);
    QfQkvAppend op = args();
    op.q = out.q.data();
    op.k_cache = out.k_cache.data();
    op.v_cache = out.v_cache.data();
    succeed(backend().qkv_append(0, &op));
    return out.read();
  }

  Results apart() const {
    const Outputs out(s_);
    const auto rows = [&](int64_t width) {
      return DeviceArray(std::vector<float>(static_cast<size_t>(s_.m * width), NAN), s_.dtype);
    };
    const DeviceArray normed = rows(s_.k), q = rows(s_.width()), k = rows(s_.kv_width()), v = rows(s_.kv_width());
    const DeviceArray turned_k = rows(s_.kv_width());
    const QfRmsNorm norm = {x_.data(), norm_.floats(), normed.data(), s_.m, s_.k, s_.k + s_.pad_x, 1e-5f, s_.dtype};
    succeed(backend().rms_norm(0, &norm));
    project(normed, wq_, s_.width(), q);
    project(normed, wk_, s_.kv_width(), k);
    project(normed, wv_, s_.kv_width(), v);
    turn(q, s_.heads, out.q);
    turn(k, s_.kv_heads, turned_k);
    const QfKvAppend append = {turned_k.data(), v.data(),      out.k_cache.data(), out.v_cache.data(),
                               slots_.data(),   s_.m,          s_.kv_heads,        s_.head_dim,
                               s_.kv_width(),   s_.kv_width(), s_.slots(),         s_.dtype,
                               s_.cache_dtype};
    succeed(backend().kv_append(0, &append));
    return out.read();
  }

 private:
  struct Outputs {
    explicit Outputs(const Shape& s)
        : q(std::vector<float>(static_cast<size_t>(s.m * s.width()), NAN), s.dtype),
          k_cache(std::vector<float>(static_cast<size_t>(s.slots() * s.kv_width()), 7.0f), s.cache_dtype),
          v_cache(std::vector<float>(static_cast<size_t>(s.slots() * s.kv_width()), 7.0f), s.cache_dtype) {}
    Results read() const { return {q.bytes(), k_cache.bytes(), v_cache.bytes()}; }
    DeviceArray q, k_cache, v_cache;
  };

  static std::vector<float> frequencies(int64_t head_dim) {
    std::vector<float> out;
    for (int64_t j = 0; j < head_dim; j += 2)
      out.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(j) / static_cast<double>(head_dim))));
    return out;
  }
  template <class Value>
  std::vector<int32_t> numbers(Value value) const {
    std::vector<int32_t> out;
    for (int64_t t = 0; t < s_.m; ++t) out.push_back(static_cast<int32_t>(value(t)));
    return out;
  }
  void project(const DeviceArray& x, const DeviceArray& w, int64_t n, const DeviceArray& y) const {
    const QfLinear args = {x.data(), w.data(),   nullptr,  nullptr,     nullptr, y.data(), s_.m,
                           n,        s_.k,       s_.k,     s_.k,        0,       n,        0.0f,
                           s_.dtype, s_.w_dtype, s_.dtype, QF_ACT_NONE, s_.math};
    succeed(backend().linear(0, &args));
  }
  void turn(const DeviceArray& x, int64_t heads, const DeviceArray& y) const {
    const QfRope args = {x.data(), positions_.data(), inv_freq_.floats(),  y.data(), s_.m,
                         heads,    s_.head_dim,       heads * s_.head_dim, s_.dtype};
    succeed(backend().rope(0, &args));
  }

  const Shape s_;
  Random random_;
  DeviceArray x_, norm_, wq_, wk_, wv_, inv_freq_;
  DeviceInts positions_, slots_;
};

uint64_t launches() { return emulator::counters().launches; }

// Compares both ways, and the number of kernels that the op took (0: any).
void check(const Shape& s, uint64_t kernels) {
  const Problem problem(s);
  const Results apart = problem.apart();
  const uint64_t before = launches();
  const Results fused = problem.fused();
  const uint64_t taken = launches() - before;
  if (kernels > 0 && taken != kernels)
    fail(__FILE__, __LINE__, describe(s) + ": " + std::to_string(taken) + " kernels");
  if (fused.q != apart.q) fail(__FILE__, __LINE__, "q, " + describe(s));
  if (fused.k_cache != apart.k_cache) fail(__FILE__, __LINE__, "k, " + describe(s));
  if (fused.v_cache != apart.v_cache) fail(__FILE__, __LINE__, "v, " + describe(s));
}

Shape with(int64_t m, int32_t dtype) {
  Shape s{m};
  s.dtype = s.w_dtype = s.cache_dtype = dtype;
  return s;
}

}  // namespace

TEST("few tokens take one kernel with the bits of the separate ops, some more two") {
  for (int32_t dtype : {QF_F16, QF_BF16}) {
    for (int64_t m : {1, 2, 4}) check(with(m, dtype), 1);
    for (int64_t m : {5, 9, 17, 32}) check(with(m, dtype), 2);
    check(with(33, dtype), 0);
  }
}

TEST("heads of every size, shared or not, and every dtype of the cache") {
  for (int64_t head_dim : {32, 128}) {
    for (int64_t kv_heads : {1, 3}) {
      Shape s = with(3, QF_F16);
      s.head_dim = head_dim;
      s.heads = 3;
      s.kv_heads = kv_heads;
      check(s, 1);
    }
  }
  for (int32_t cache_dtype : {QF_F32, QF_F16, QF_BF16}) {
    Shape s = with(2, QF_BF16);
    s.cache_dtype = cache_dtype;
    check(s, 1);
    s.m = 6;
    check(s, 2);
  }
}

TEST("the products of q and of k are cut into other chunks, as linear cuts them") {
  Shape s = with(2, QF_F16);
  s.k = 4232;  // with a tail; 2 chunks of q, 4 of k and v
  s.heads = 33;
  s.kv_heads = 1;
  check(s, 1);
  s.k = 1416;
  s.heads = 2;
  s.m = 7;
  check(s, 2);
}

TEST("what the kernel does not take goes through the separate kernels") {
  Shape s = with(3, QF_F16);
  s.head_dim = 80;
  check(s, 0);
  s = with(3, QF_BF16);
  s.pad_x = 3;
  check(s, 2);  // rows that are not aligned are once they are normalised
  s.shift_w = 1;
  check(s, 0);
  s = with(3, QF_F16);
  s.k = 97;
  check(s, 0);
  for (int64_t m : {1, 5, 35}) {
    for (int32_t w_dtype : {QF_F32, QF_BF16}) {
      s = with(m, QF_F32);
      s.w_dtype = w_dtype;
      s.cache_dtype = QF_F16;
      s.math = w_dtype == QF_BF16 ? QF_MATH_BF16 : QF_MATH_F32;
      check(s, 0);
    }
  }
}

TEST("nothing happens for no tokens") {
  QfQkvAppend op{};
  op.dtype = op.w_dtype = op.cache_dtype = QF_F16;
  op.heads = op.kv_heads = 1;
  op.head_dim = op.k = 32;
  CHECK_EQ(backend().qkv_append(0, &op), QF_OK);
}

TEST("a slot outside the cache is reported, and the other tokens are written") {
  for (int64_t m : {1, 40}) {
    const Shape s = with(m, QF_F16);
    const Problem problem(s);
    QfQkvAppend op = problem.args();
    const DeviceInts slots(std::vector<int32_t>(static_cast<size_t>(m), static_cast<int32_t>(s.slots())));
    const DeviceArray q(std::vector<float>(static_cast<size_t>(m * s.width()), NAN), s.dtype);
    const DeviceArray cache(std::vector<float>(static_cast<size_t>(s.slots() * s.kv_width()), 7.0f), s.dtype);
    op.slot_mapping = slots.data();
    op.q = q.data();
    op.k_cache = op.v_cache = cache.data();
    CHECK_EQ(backend().qkv_append(0, &op), QF_OK);
    CHECK_EQ(backend().synchronize(0), QF_INVALID_ARGUMENT);
    CHECK(std::string(backend().last_error()).find("qkv") != std::string::npos);
    for (float value : q.read()) CHECK(!std::isnan(value));
  }
}
