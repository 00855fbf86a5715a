// The op table: any shapes, views, offsets and ids give a result or an Error, never a wild read or write.
#include <functional>

#include "cpu/cpu_backend.h"
#include "input.h"
#include "ops/ops.h"

using namespace qformer;

namespace {

class OpFuzzer {
 public:
  explicit OpFuzzer(fuzz::Input& input) : in_(input), device_(find_device("cpu")) {}

  void step() {
    static const std::vector<void (OpFuzzer::*)()> kOps = {
        &OpFuzzer::views,     &OpFuzzer::linear,          &OpFuzzer::norms,     &OpFuzzer::rope,
        &OpFuzzer::attention, &OpFuzzer::paged,           &OpFuzzer::kv_append, &OpFuzzer::tokens,
        &OpFuzzer::sampling,  &OpFuzzer::copies,          &OpFuzzer::patches,   &OpFuzzer::lora,
        &OpFuzzer::qkv,       &OpFuzzer::cross_attention,
    };
    (this->*kOps[static_cast<size_t>(in_.byte()) % kOps.size()])();
  }

 private:
  Tensor f32(const Shape& shape) { return maybe_view(in_.tensor(device_, shape, QF_F32)); }
  Tensor i32(const Shape& shape) { return in_.tensor(device_, shape, QF_I32); }
  Tensor weight(const Shape& shape) { return in_.tensor(device_, shape, static_cast<int32_t>(in_.byte() % 3)); }
  int64_t dim(int64_t usual = 9) { return in_.extent(usual); }
  // A product of extents, where a huge one would overflow before an op can refuse it.
  static int64_t times(int64_t a, int64_t b) {
    int64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product)) fail(ErrorCode::kShape, "too large for a fuzzer");
    return product;
  }

  // Now and then a tensor of another shape or a strided one takes the place of the right one.
  Tensor maybe_view(const Tensor& x) {
    const uint8_t choice = in_.byte();
    if (choice > 30 || x.rank() == 0) return x;
    if (choice > 20) return transpose(x, in_.byte() % 4, in_.byte() % 4);
    return slice(x, in_.byte() % 4, in_.extent(4), in_.extent(9));
  }

  void views() {
    Tensor x = f32(Shape{dim(), dim(), dim()});
    fuzz::touch(select(x, in_.byte() % 5 - 1, in_.extent(6)));
    fuzz::touch(reshape(x, Shape{dim(), dim()}));
  }
  void linear() {
    const int64_t m = dim(40), n = dim(40), k = dim(70);
    const Tensor x = f32(Shape{m, k}), w = maybe_view(weight(Shape{n, k})), bias = f32(Shape{n}),
                 residual = f32(Shape{m, n});
    const auto math = static_cast<int32_t>(in_.byte() % 3);
    const auto activation = static_cast<int32_t>(in_.byte() % 6);
    const Tensor norm = f32(Shape{k});
    const Tensor* prologue = in_.byte() % 2 ? &norm : nullptr;
    const int32_t y_dtype = static_cast<int32_t>(in_.byte() % 4) - 1;
    const Tensor *add = in_.byte() % 2 ? &residual : nullptr, *shift = in_.byte() % 2 ? &bias : nullptr;
    fuzz::touch(ops::linear(x, w, shift, add, prologue, in_.number(), activation, math, y_dtype));
    fuzz::touch(ops::gated_linear(x, w, w, prologue, in_.number(), activation, math));
    const ops::Quantized quantized = ops::quantize(w, in_.byte() % 3 ? 4 : 8, in_.extent(20));
    fuzz::touch(quantized.q);
    fuzz::touch(ops::quant_linear(x, maybe_view(quantized.q), maybe_view(quantized.scales), shift, add, prologue,
                                  in_.number(), activation, math, y_dtype));
  }
  void qkv() {
    const int64_t kv_heads = dim(3), heads = times(kv_heads, dim(3)), d = dim(20), tokens = dim(), k = dim(30);
    const Shape cache{dim(4), dim(4), kv_heads, d};
    const auto dtype = static_cast<int32_t>(in_.byte() % 3), w_dtype = static_cast<int32_t>(in_.byte() % 3);
    const Tensor k_cache = in_.tensor(device_, cache, dtype), v_cache = in_.tensor(device_, cache, dtype);
    const Tensor wq = in_.tensor(device_, Shape{times(heads, d), k}, w_dtype);
    const Tensor wk = in_.tensor(device_, Shape{times(kv_heads, d), k}, w_dtype);
    fuzz::touch(ops::qkv_append(f32(Shape{tokens, k}), f32(Shape{k}), wq, wk, maybe_view(wk), i32(Shape{tokens}),
                                f32(Shape{d / 2}), k_cache, v_cache, i32(Shape{tokens}), in_.number(), in_.byte() % 2));
    fuzz::touch(k_cache);
  }
  void cross_attention() {
    const int64_t batch = dim(3), rows = dim(6), heads = dim(3), d = dim(12), keys = dim(5), width = times(heads, d);
    const Tensor x = f32(Shape{batch, rows, width}), w = weight(Shape{width, width}), bias = f32(Shape{width});
    const Tensor kv = f32(Shape{times(batch, keys), times(2, heads), d});
    const Tensor k = slice(kv, 1, 0, heads), v = slice(kv, 1, heads, 2 * heads);
    fuzz::touch(ops::qformer_cross_attention(x, w, bias, k, maybe_view(v), w, bias, bias, bias, in_.extent(4),
                                             in_.number(), in_.number(), in_.byte() % 2));
  }
  void norms() {
    const int64_t c = dim(70);
    const Tensor x = f32(Shape{dim(), c}), weight = f32(Shape{c}), bias = f32(Shape{c});
    fuzz::touch(ops::layer_norm(x, weight, bias, in_.number()));
    fuzz::touch(ops::rms_norm(x, weight, in_.number()));
    fuzz::touch(ops::softmax(x, in_.byte() % 2));
  }
  void rope() {
    const int64_t tokens = dim(), d = dim(40);
    fuzz::touch(ops::rope(f32(Shape{tokens, dim(4), d}), i32(Shape{tokens}), f32(Shape{d / 2})));
  }
  void attention() {
    const int64_t kv_heads = dim(3), heads = times(kv_heads, dim(3)), d = dim(40), batch = dim(4);
    const Tensor q = f32(Shape{dim(12), heads, d}), k = f32(Shape{dim(12), kv_heads, d}), v = f32(k.shape);
    const Tensor bias = f32(Shape{heads, dim(12)});
    fuzz::touch(ops::attention(
        q, k, v, i32(Shape{batch + 1}), i32(Shape{batch + 1}), in_.byte() % 2 == 0 ? nullptr : &bias, in_.extent(12),
        in_.number(), static_cast<int32_t>(in_.byte() % 5), in_.extent(6), static_cast<int32_t>(in_.byte() % 3)));
  }
  void paged() {
    const int64_t kv_heads = dim(3), d = dim(40), batch = dim(4);
    const Tensor q = f32(Shape{dim(12), times(kv_heads, dim(3)), d}), bias = f32(Shape{q.shape[1], dim(12)});
    const Shape cache{dim(6), dim(4), kv_heads, d};
    const auto dtype = static_cast<int32_t>(in_.byte() % 3);
    const Tensor k = in_.tensor(device_, cache, dtype), v = in_.tensor(device_, cache, dtype);
    fuzz::touch(ops::paged_attention(q, k, v, i32(Shape{batch + 1}), i32(Shape{batch, dim(4)}), i32(Shape{batch}),
                                     in_.byte() % 2 == 0 ? nullptr : &bias, in_.extent(12), in_.number(),
                                     static_cast<int32_t>(in_.byte() % 3)));
  }
  void kv_append() {
    const int64_t heads = dim(3), d = dim(20), tokens = dim();
    const Shape cache{dim(4), dim(4), heads, d};
    const auto dtype = static_cast<int32_t>(in_.byte() % 3);
    const Tensor k_cache = in_.tensor(device_, cache, dtype), v_cache = in_.tensor(device_, cache, dtype);
    ops::kv_append(f32(Shape{tokens, heads, d}), f32(Shape{tokens, heads, d}), k_cache, v_cache, i32(Shape{tokens}));
    fuzz::touch(k_cache);
  }
  void tokens() {
    const int64_t cols = dim(20), count = dim();
    const Tensor ids = i32(Shape{count});
    fuzz::touch(ops::embedding(ids, weight(Shape{dim(12), cols}), in_.byte() % 4));
    fuzz::touch(ops::gather_rows(f32(Shape{dim(12), cols}), ids));
    ops::scatter_rows(f32(Shape{dim(12), cols}), ids, f32(Shape{count, cols}));
  }
  void sampling() {
    const int64_t batch = dim(4), vocab = dim(60);
    const Tensor logits = in_.tensor(device_, Shape{batch, vocab}, QF_F32), temperature = f32(Shape{batch});
    ops::penalize_logits(logits, i32(Shape{dim()}), i32(Shape{batch + 1}), i32(Shape{dim()}), i32(Shape{batch + 1}),
                         f32(Shape{batch}));
    const Tensor scores =
        ops::warp_logits(logits, temperature, i32(Shape{batch}), f32(Shape{batch}), f32(Shape{batch}), in_.extent(4));
    fuzz::touch(ops::sample(scores, temperature, i32(Shape{batch, 2}), i32(Shape{batch})));
    const ops::TopK best = ops::top_k(scores, dim(60));
    fuzz::touch(best.values);
    fuzz::touch(best.ids);
  }
  void copies() {
    const Tensor x = maybe_view(weight(Shape{dim(5), dim(5), dim(5), dim(5)}));
    const Tensor y = ops::cast(x, static_cast<int32_t>(in_.byte() % 6));
    fuzz::touch(y);
    ops::copy_into(maybe_view(y), x);
    fuzz::touch(ops::binary(f32(Shape{dim(), dim()}), f32(Shape{dim()}), in_.byte() % 5));
    fuzz::touch(ops::unary(f32(Shape{dim(), dim()}), in_.byte() % 6, in_.number(), in_.number()));
  }
  void patches() {
    const int64_t patch = dim(4), channels = dim(3), d = dim(20), gh = dim(3), gw = dim(3);
    const Tensor pixels = f32(Shape{dim(2), channels, times(gh, patch), times(gw, patch)});
    const Tensor bias = f32(Shape{d});
    fuzz::touch(ops::patch_embedding(pixels, weight(Shape{d, channels, patch, patch}), in_.byte() % 2 ? &bias : nullptr,
                                     f32(Shape{d}), f32(Shape{1 + times(gh, gw), d}), in_.byte() % 4, in_.byte() % 2));
  }
  void lora() {
    const int64_t out = dim(20), in = dim(20), rank = dim(5);
    fuzz::touch(ops::lora_merge(weight(Shape{out, in}), f32(Shape{rank, in}), f32(Shape{out, rank}), in_.number()));
    const int64_t slots = dim(3), rows = dim();
    const auto dtype = static_cast<int32_t>(in_.byte() % 3);
    const Tensor y = f32(Shape{rows, out});
    ops::lora_apply(y, f32(Shape{rows, in}), in_.tensor(device_, Shape{slots, rank, in}, dtype),
                    in_.tensor(device_, Shape{slots, out, rank}, dtype), f32(Shape{slots}), i32(Shape{rows}));
    fuzz::touch(y);
  }

  fuzz::Input& in_;
  Device& device_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool registered = (register_backend(cpu::cpu_backend()), true);
  (void)registered;
  fuzz::Input input(data, size);
  OpFuzzer fuzzer(input);
  while (!input.empty()) {
    try {
      fuzzer.step();
    } catch (const Error&) {
    }
  }
  return 0;
}
