// Penalties in place: repetition penalty on every distinct id of a row's history, then -inf for its banned ids.
//
// A block per row. Penalised scores are computed from the row as it came and kept aside, then written: an id that
// repeats is written the same value each time. Traffic: some hundred scattered scores per row.
#include "entry.h"
#include "prims/fault.h"
#include "prims/global.h"
#include "runtime/device.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 256;

struct PenalizeArgs {
  QfPenalizeLogits op;
  float* penalized;  // [history_len]
  int32_t* fault;
};

struct Range {
  int32_t begin, end;
};

// The ids of one row; nothing, and a fault, where the offsets do not rise from 0 to at most `length`.
QF_DEVICE Range range_of_row(Global<const int32_t> offsets, int64_t row, int64_t length, Global<int32_t> fault) {
  const Range range = {offsets[row], offsets[row + 1]};
  const bool from_zero = row > 0 || range.begin == 0;
  if (from_zero && range.begin >= 0 && range.begin <= range.end && range.end <= length) return range;
  if (threadIdx.x == 0) report_fault(fault, kFaultBadLength);
  return {0, 0};
}

// An atomic because equal ids meet here; all of them bring the same bits.
QF_DEVICE void write_score(Global<uint32_t> row, int32_t id, float score) {
  atomic_exchange(row, id, bit_cast<uint32_t>(score));
}

QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 1) penalize_rows(PenalizeArgs args) {
  const QfPenalizeLogits& op = args.op;
  const int64_t b = blockIdx.x;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const Global<float> row = Global<float>(op.logits) + b * op.vocab;
  const Global<uint32_t> bits = Global<uint32_t>(reinterpret_cast<uint32_t*>(op.logits)) + b * op.vocab;
  const Global<const int32_t> history(op.history), banned(op.banned);
  const Global<float> penalized(args.penalized);
  const Range past = range_of_row(op.cu_history, b, op.history_len, args.fault);
  const Range bans = range_of_row(op.cu_banned, b, op.banned_len, args.fault);
  const float penalty = Global<const float>(op.repetition_penalty)[b];
  if (penalty != 1.0f) {
    for (int32_t i = past.begin + thread; i < past.end; i += kThreads) {
      const int32_t id = history[i];
      if (id < 0 || id >= op.vocab) continue;
      const float score = row[id];
      penalized.store(i, score < 0.0f ? score * penalty : score / penalty);
    }
    __syncthreads();
    for (int32_t i = past.begin + thread; i < past.end; i += kThreads) {
      const int32_t id = history[i];
      if (id >= 0 && id < op.vocab) write_score(bits, id, penalized[i]);
    }
  }
  __syncthreads();
  for (int32_t i = bans.begin + thread; i < bans.end; i += kThreads) {
    const int32_t id = banned[i];
    if (id >= 0 && id < op.vocab) write_score(bits, id, -INFINITY);
  }
}

}  // namespace

QfStatus penalize_logits(int32_t device, const QfPenalizeLogits* op) {
  if (op->batch == 0 || op->vocab == 0) return QF_OK;
  DeviceContext& context = context_of(device);
  void* penalized = nullptr;
  const size_t bytes = static_cast<size_t>(op->history_len > 0 ? op->history_len : 1) * sizeof(float);
  if (const QfStatus status = context.scratch(bytes, &penalized); status != QF_OK) return status;
  const PenalizeArgs args = {*op, static_cast<float*>(penalized), context.fault()};
  return launch("penalizeLogits", context.stream, penalize_rows, dim3(static_cast<unsigned>(op->batch)), dim3(kThreads),
                0, args);
}

}  // namespace qformer::cuda
