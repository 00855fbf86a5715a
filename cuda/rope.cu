// Rotary position embedding (rotate-half form) of packed tokens. One CTA per token: it takes the sines and cosines of
// the token's angle once into shared memory and turns all heads by them, four columns a thread at a time where rows
// allow. The angle is position * inv_freq in f32 and its sine and cosine are the accurate ones: positions reach
// thousands of radians, where the fast approximations are wrong in the second digit. Traffic: x read once, y written
// once. Source: Su et al. 2021; the pairing is Hugging Face's rotate_half.

#include <climits>

#include "attention_launch.h"
#include "backend/dtype.h"
#include "entry.h"
#include "prims/math.h"
#include "prims/shared.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 128;

struct RopeProblem {
  const void* x;
  const int32_t* positions;
  const float* inv_freq;
  void* y;
  int64_t x_stride;
  int32_t heads, half;  // half: head_dim / 2
};

// N columns of each half at a time.
template <class T, int N>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) rope_kernel(RopeProblem p) {
  SharedMemory shared;
  const Shared<float> cosine = shared.take<float>(p.half), sine = shared.take<float>(p.half);
  const int64_t token = blockIdx.x;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const float position = static_cast<float>(Global<const int32_t>(p.positions).load(token));
  for (int32_t j = thread; j < p.half; j += kThreads) {
    const float angle = mul_rn(position, Global<const float>(p.inv_freq).load(j));
    cosine.store(j, cosf(angle));
    sine.store(j, sinf(angle));
  }
  __syncthreads();
  const int32_t pieces = p.half / N;
  const Global<const T> x = Global<const T>(static_cast<const T*>(p.x)) + token * p.x_stride;
  const Global<T> y = Global<T>(static_cast<T*>(p.y)) + token * p.heads * 2 * p.half;
  for (int32_t i = thread; i < p.heads * pieces; i += kThreads) {
    const int32_t column = i % pieces * N, at = i / pieces * 2 * p.half + column;
    const Vec<T, N> first = x.template load_vec<N>(at), second = x.template load_vec<N>(at + p.half);
    Vec<T, N> turned_first, turned_second;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float a = to_float(first[n]), b = to_float(second[n]);
      const float c = cosine.load(column + n), s = sine.load(column + n);
      turned_first[n] = from_float<T>(fmaf(-b, s, mul_rn(a, c)));
      turned_second[n] = from_float<T>(fmaf(a, s, mul_rn(b, c)));
    }
    y.template store_vec<N>(at, turned_first);
    y.template store_vec<N>(at + p.half, turned_second);
  }
}

template <class T>
QfStatus launch_rope(DeviceContext& context, const QfRope& a) {
  const RopeProblem p = {a.x,
                         a.positions,
                         a.inv_freq,
                         a.y,
                         a.x_stride,
                         static_cast<int32_t>(a.heads),
                         static_cast<int32_t>(a.head_dim / 2)};
  constexpr uintptr_t kBytes = 4 * sizeof(T);
  const bool vectors = p.half % 4 == 0 && a.x_stride % 4 == 0 && reinterpret_cast<uintptr_t>(a.x) % kBytes == 0 &&
                       reinterpret_cast<uintptr_t>(a.y) % kBytes == 0;
  const size_t shared = 2 * shared_bytes<float>(static_cast<size_t>(p.half));
  const dim3 grid(static_cast<uint32_t>(a.tokens));
  return launch("rope", context.stream, vectors ? rope_kernel<T, 4> : rope_kernel<T, 1>, grid, dim3(kThreads), shared,
                p);
}

}  // namespace

QfStatus rope(int32_t device, const QfRope* args) {
  DeviceContext& context = context_of(device);
  if (const QfStatus status = check_activation_dtype(context, "rope", args->dtype); status != QF_OK) return status;
  if (args->tokens > INT_MAX || args->heads * args->head_dim > INT_MAX / 2) {
    return fail(QF_UNSUPPORTED, "rope: %lld tokens of %lld values are more than one call takes",
                static_cast<long long>(args->tokens), static_cast<long long>(args->heads * args->head_dim));
  }
  if (args->dtype == QF_F16) return launch_rope<Half>(context, *args);
  if (args->dtype == QF_BF16) return launch_rope<BFloat16>(context, *args);
  return launch_rope<float>(context, *args);
}

}  // namespace qformer::cuda
