// The products of q, k and v over the weight stream of decode_stream.cuh, with the rotation and the cache in the
// epilogue: q, k and v are never stored between.
//
// Blocks of 4 warps stream units of q, then of k, then of v. A unit's two groups are 16 columns of a head and the 16
// that rotate with them, head_dim / 2 further, so that both of a pair are in one block's shared memory. Each of the
// three products is cut along k as the op linear cuts it, and sums are rounded to T before the rotation as linear
// stores them: the bits are those of rms_norm, linear, rope and kv_append.
//
// Traffic: the weights once, tokens from L2; q and the cache slots are written once. 4096 columns of k and 4096 rows
// each give 192 blocks. Registers on sm_90 up to 8 tokens 71, to 16 90, to 32 124; sine and cosine of
// large angles take 32 bytes of local memory. No spills from sm_75 to sm_120.
#include "qkv_decode.h"

#include "decode.h"
#include "decode_plan.h"
#include "gemm_plan.h"
#include "prims/fault.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

// One of the three products.
struct QkvPart {
  const void* w;  // [heads * head_dim, k] dense
  int32_t units;
  int32_t k_chunk, chunks;
  int32_t first_block;
};

struct QkvArgs {
  DecodeTokens tokens;
  QkvPart parts[3];
  const int32_t* positions;
  const float* inv_freq;
  const int32_t* slot_mapping;
  void* q;
  void* k_cache;
  void* v_cache;
  int32_t* fault;
  int64_t slots;
  int32_t half;  // head_dim / 2
  int32_t cache_dtype;
};

QF_DEVICE void store_cached(void* cache, int32_t dtype, int64_t i, float value) {
  if (dtype == QF_F16)
    Global<Half>(static_cast<Half*>(cache)).store(i, from_float<Half>(value));
  else if (dtype == QF_BF16)
    Global<BFloat16>(static_cast<BFloat16*>(cache)).store(i, from_float<BFloat16>(value));
  else
    Global<float>(static_cast<float*>(cache)).store(i, value);
}

template <class T>
QF_DEVICE float round_to(float x) {
  return to_float(from_float<T>(x));
}

// Columns `at` and `at` + half of one token: rotated into q, or rotated (k) or as they are (v) into the cache.
template <class T>
QF_DEVICE void write_pair(const QkvArgs& args, int part, int token, int64_t width, int64_t at, int pair, float a,
                          float b) {
  a = round_to<T>(a);
  b = round_to<T>(b);
  if (part < 2) {
    const float position = static_cast<float>(Global<const int32_t>(args.positions).load(token));
    const float angle = mul_rn(position, Global<const float>(args.inv_freq).load(pair));
    const float c = cosf(angle), s = sinf(angle);
    const float first = a;
    a = round_to<T>(fmaf(-b, s, mul_rn(first, c)));
    b = round_to<T>(fmaf(first, s, mul_rn(b, c)));
  }
  if (part == 0) {
    const Global<T> q(static_cast<T*>(args.q));
    q.store(token * width + at, from_float<T>(a));
    q.store(token * width + at + args.half, from_float<T>(b));
    return;
  }
  const int32_t slot = Global<const int32_t>(args.slot_mapping).load(token);
  if (slot < 0) return;
  if (slot >= args.slots) return report_fault(args.fault, kFaultSlotOutOfRange);
  void* const cache = part == 1 ? args.k_cache : args.v_cache;
  store_cached(cache, args.cache_dtype, slot * width + at, a);
  store_cached(cache, args.cache_dtype, slot * width + at + args.half, b);
}

template <class T, int kTokenTiles, bool kStaged>
QF_KERNEL void QF_LAUNCH_BOUNDS(kMaxStreamWarps * 32, 3) qkv_decode_kernel(QkvArgs args) {
  const int block = static_cast<int>(blockIdx.x);
  const int index = block >= args.parts[2].first_block ? 2 : block >= args.parts[1].first_block ? 1 : 0;
  const QkvPart part = index == 0 ? args.parts[0] : index == 1 ? args.parts[1] : args.parts[2];
  // Warps that are too few for a unit have nothing to do.
  const int warps = static_cast<int>(blockDim.x) / 32, per_block = warps / part.chunks;
  const int chunk = stream_warp() % part.chunks, place = stream_warp() / part.chunks;
  const int unit = (block - part.first_block) * per_block + place;
  const bool busy = place < per_block && unit < part.units;

  const int units_of_head = args.half / kGroupRows, head_dim = 2 * args.half;
  const int used = min(unit, part.units - 1), pair = used % units_of_head * kGroupRows;
  const int64_t row = used / units_of_head * head_dim + pair;
  const int k = args.tokens.k;
  const Global<const T> w = Global<const T>(static_cast<const T*>(part.w)) + row * k;
  const UnitRows<T> rows = {{w, w + static_cast<int64_t>(args.half) * k}, {kGroupRows, kGroupRows}};
  const int k_begin = chunk * part.k_chunk, k_end = busy ? min(k_begin + part.k_chunk, k) : k_begin;
  const ChunkSums sums =
      stream_product<T, kTokenTiles, kStaged>(args.tokens, rows, k, k_begin, k_end, chunk, part.chunks);
  if (!busy) return;

  const int64_t width = part.units / units_of_head * head_dim;
#pragma unroll 1
  for (int item = chunk * 32 + stream_lane(); item < args.tokens.m * kGroupRows; item += part.chunks * 32) {
    const int token = item / kGroupRows, column = item % kGroupRows;
    write_pair<T>(args, index, token, width, row + column, pair + column, sums.total(token, column),
                  sums.total(token, kGroupRows + column));
  }
}

// The product of q; those of k and v differ in the weights.
GemmArgs product_of(const QfQkvAppend& op) {
  GemmArgs product{};
  product.x = op.x;
  product.w = op.wq;
  product.norm_weight = op.norm_weight;
  product.ldx = op.ldx;
  product.ldw = op.k;
  product.m = static_cast<int32_t>(op.m);
  product.n = static_cast<int32_t>(op.heads * op.head_dim);
  product.k = static_cast<int32_t>(op.k);
  product.norm_eps = op.norm_eps;
  return product;
}

template <class T>
QfStatus launch_qkv(DeviceContext& context, const QkvArgs& args, const StreamPlan& plan) {
  const auto with = [&](auto kernel) {
    return launch_dependent("qkvAppend", context.stream, kernel, dim3(static_cast<unsigned>(plan.blocks)),
                            dim3(static_cast<unsigned>(plan.warps) * 32), plan.bytes, args);
  };
  if (args.tokens.norm_weight != nullptr) return with(qkv_decode_kernel<T, 1, true>);
  switch (token_tiles(args.tokens.m)) {
    case 1:
      return with(qkv_decode_kernel<T, 1, false>);
    case 2:
      return with(qkv_decode_kernel<T, 2, false>);
    default:
      return with(qkv_decode_kernel<T, 4, false>);
  }
}

}  // namespace

bool qkv_decode_serves(const QfQkvAppend& op) {
  const bool aligned = reinterpret_cast<uintptr_t>(op.wk) % 16 == 0 && reinterpret_cast<uintptr_t>(op.wv) % 16 == 0;
  return aligned && op.head_dim % kUnitRows == 0 && op.m > 0 && decode_serves(product_of(op), op.dtype);
}

bool qkv_decode_normalises(const DeviceContext& context, const QfQkvAppend& op) {
  return qkv_decode_serves(op) && decode_normalises(context, product_of(op), op.dtype);
}

QfStatus run_qkv_decode(DeviceContext& context, const QfQkvAppend& op) {
  GemmArgs product = product_of(op);
  if (const QfStatus status = prepare_gemm(context, "qkvAppend", &product, op.dtype); status != QF_OK) return status;
  QkvArgs args{};
  args.tokens = decode_tokens(product);
  args.positions = op.positions;
  args.inv_freq = op.inv_freq;
  args.slot_mapping = op.slot_mapping;
  args.q = op.q;
  args.k_cache = op.k_cache;
  args.v_cache = op.v_cache;
  args.fault = context.fault();
  args.slots = op.slots;
  args.half = static_cast<int32_t>(op.head_dim / 2);
  args.cache_dtype = op.cache_dtype;
  const void* const weights[3] = {op.wq, op.wk, op.wv};
  for (int i = 0; i < 3; ++i) {
    const auto n = static_cast<int32_t>((i == 0 ? op.heads : op.kv_heads) * op.head_dim);
    const int32_t k_chunk = gemm_k_chunk(n, product.k);
    args.parts[i] = {weights[i], n / kUnitRows, k_chunk, std::max((product.k + k_chunk - 1) / k_chunk, 1), 0};
  }
  const auto blocks_with = [&](int32_t warps) {
    int32_t blocks = 0;
    for (QkvPart& part : args.parts) {
      const int32_t per_block = warps / part.chunks;
      part.first_block = blocks;
      blocks += (part.units + per_block - 1) / per_block;
    }
    return blocks;
  };
  int32_t warps = kMaxStreamWarps, blocks = blocks_with(warps);
  if (blocks < context.multiprocessors) {
    warps = std::max({args.parts[0].chunks, args.parts[1].chunks, args.parts[2].chunks});
    blocks = blocks_with(warps);
  }
  const int tiles = token_tiles(args.tokens.m);
  const StreamPlan plan = plan_ring(context, blocks, warps, [&](int32_t block_warps, int32_t stages) {
    return stream_shared_bytes(args.tokens, block_warps, stages, tiles);
  });
  args.tokens.stages = plan.stages;
  return op.dtype == QF_F16 ? launch_qkv<Half>(context, args, plan) : launch_qkv<BFloat16>(context, args, plan);
}

}  // namespace qformer::cuda
