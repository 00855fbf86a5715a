// One token per row: the arg max (lowest id on ties) where temperature is 0, else the inverse of the cumulative
// distribution in id order at a counter-based random number.
//
// A block per row. Masses are integers (backend/draw_rule.h), so that warps sum their stretch of the row in any order
// and the running sum never falls: the stretch that holds the target is cut into 32 again until one id is left.
// Traffic: the row from memory once, a second walk in L2. Source: Salmon et al. 2011 (Philox).
#include "entry.h"
#include "runtime/device.h"
#include "runtime/launch.h"
#include "sampling_row.cuh"

namespace qformer::cuda {
namespace {

struct DrawArgs {
  QfSample op;
  bool wide;
};

QF_DEVICE uint64_t mass_at(const ScoreRow& row, int32_t id, float max) { return mass_of(exp_weight(row.x[id] - max)); }

// Mass of this warp's stretch of [begin, end), cut into stretches of `width`; the same in every lane.
QF_DEVICE uint64_t mass_of_stretch(const ScoreRow& row, int32_t begin, int32_t end, int32_t width, float max) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32, warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t first = begin + warp * width, past = first + width < end ? first + width : end;
  uint64_t mass = 0;
#pragma unroll 4
  for (int32_t i = first + lane; i < past; i += 32) mass += mass_at(row, i, max);
  return warp_add(mass);
}

QF_DEVICE int32_t draw_id(const ScoreRow& row, WarpExchange& exchange, float max, uint32_t word) {
  int32_t begin = 0, end = row.vocab;
  uint64_t target = 0;
  do {
    const int32_t width = (end - begin + kRowWarps - 1) / kRowWarps;
    const uint64_t mass = exchange(mass_of_stretch(row, begin, end, width, max));
    const uint64_t running = warp_running_sum(mass);
    if (end - begin == row.vocab) target = draw_target(word, __shfl_sync(kFullWarp, running, 31));
    const int stretch = __ffs(static_cast<int>(__ballot_sync(kFullWarp, running > target))) - 1;
    target -= __shfl_sync(kFullWarp, running - mass, stretch);
    begin += stretch * width;
    end = begin + width < end ? begin + width : end;
  } while (end - begin > 1);
  return begin;
}

QF_KERNEL void QF_LAUNCH_BOUNDS(kRowThreads, 1) draw_rows(DrawArgs args) {
  const QfSample& op = args.op;
  SharedMemory shared;
  WarpExchange exchange(shared.take<uint64_t>(WarpExchange::kSlots));
  const int64_t b = blockIdx.x;
  const ScoreRow row = {Global<const float>(op.scores) + b * op.vocab, static_cast<int32_t>(op.vocab), args.wide};
  uint64_t best = 0;  // order key, then the lower id
  for_each_score(row, [&](int32_t id, float score) {
    const uint64_t entry = static_cast<uint64_t>(order_key(score)) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
    best = entry > best ? entry : best;
  });
  best = exchange.largest(best);
  const auto key = static_cast<uint32_t>(best >> 32);
  int32_t id = -1;
  if (is_finite_key(key)) {
    id = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best));
    if (Global<const float>(op.temperature)[b] > 0.0f) {
      const Global<const int32_t> seed(op.seed);
      const uint32_t word = philox4x32_10(static_cast<uint32_t>(seed[2 * b]), static_cast<uint32_t>(seed[2 * b + 1]),
                                          static_cast<uint32_t>(Global<const int32_t>(op.step)[b]));
      id = draw_id(row, exchange, score_of_key(key), word);
    }
  }
  if (threadIdx.x == 0) Global<int32_t>(op.ids).store(b, id);
}

QF_KERNEL void no_tokens(int32_t* ids, int64_t batch) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b < batch) Global<int32_t>(ids).store(b, -1);
}

}  // namespace

QfStatus sample(int32_t device, const QfSample* op) {
  if (op->batch == 0) return QF_OK;
  const cudaStream_t stream = context_of(device).stream;
  if (op->vocab == 0) {
    return launch("sample", stream, no_tokens, dim3(static_cast<unsigned>((op->batch + 127) / 128)), dim3(128), 0,
                  op->ids, op->batch);
  }
  if (op->vocab > kMaxVocab) return fail(QF_UNSUPPORTED, "sample: vocab is above %d", static_cast<int>(kMaxVocab));
  const DrawArgs args = {*op, rows_are_wide(op->scores, op->batch, op->vocab)};
  return launch("sample", stream, draw_rows, dim3(static_cast<unsigned>(op->batch)), dim3(kRowThreads),
                shared_bytes<uint64_t>(WarpExchange::kSlots), args);
}

}  // namespace qformer::cuda
