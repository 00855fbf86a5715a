// Rotary position embedding (rotate-half form) of packed tokens. The angle is position * inv_freq in f32, as the models
// were trained; cosine and sine are libm's, once per token for all its heads. Traffic: x read once, y written once.
// Source: Su et al. 2021; the pairing is Hugging Face's rotate_half.

#include <cmath>

#include "families.h"
#include "kernels.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {

QfStatus rope(int32_t, const QfRope* args) {
  const auto& a = *args;
  const int64_t half = a.head_dim / 2, width = a.heads * a.head_dim;
  const auto kernel = kernels().rope.rope_token;
  const auto* x = static_cast<const float*>(a.x);
  auto* y = static_cast<float*>(a.y);
  const double cost = 20.0 * static_cast<double>(half) + 0.3 * static_cast<double>(width);
  parallel_for(a.tokens, grain_for(cost), [&](int64_t begin, int64_t end) {
    auto* cosine = static_cast<float*>(thread_scratch(Scratch::kRow, static_cast<size_t>(2 * half) * sizeof(float)));
    float* sine = cosine + half;
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(a.positions[t]) * a.inv_freq[j];
        cosine[j] = std::cos(angle);
        sine[j] = std::sin(angle);
      }
      kernel(x + t * a.x_stride, cosine, sine, y + t * width, a.heads, a.head_dim);
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
