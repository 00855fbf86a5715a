// Attention over packed sequences and over the paged cache: checks the index tensors, cuts the work into jobs of one
// sequence, one kv head and some rows, and hands them to the threads. The arithmetic is in attention_kernels.h, that of
// bf16 products in attention_bf16.h; where jobs are cut has no influence on any bit of the result.
// Traffic: per job K and V of the visible keys once, q and o once; K and V are read again for every kJobRows.

#include <algorithm>
#include <vector>

#include "attention_job.h"
#include "backend/dtype.h"
#include "error.h"
#include "families.h"
#include "kernels.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

// Query tokens [first, first + tokens) of a sequence against one kv head.
struct Piece {
  int32_t sequence, kv_head;
  int64_t first, tokens;
};

QfStatus check_offsets(const char* op, const char* name, const int32_t* offsets, int64_t batch, int64_t tokens) {
  bool good = offsets[0] == 0 && offsets[batch] == tokens;
  for (int64_t b = 0; b < batch && good; ++b) good = offsets[b] <= offsets[b + 1];
  if (good) return QF_OK;
  return fail(QF_INVALID_ARGUMENT, "%s: %s must rise from 0 to %lld", op, name, static_cast<long long>(tokens));
}

bool takes_bf16(int32_t math) { return math == QF_MATH_BF16 && kernels().attention.run_bf16 != nullptr; }

// Pieces of at most kJobRows rows; none crosses token `cut` of its sequence.
void add_pieces(std::vector<Piece>& pieces, int64_t sequence, int64_t tokens, int64_t cut, int64_t group,
                int64_t kv_heads) {
  const int64_t step = std::max<int64_t>(1, kJobRows / group);
  for (int64_t first = 0; first < tokens;) {
    const int64_t end = std::min(first + step, first < cut ? std::min(cut, tokens) : tokens);
    for (int64_t h = 0; h < kv_heads; ++h) {
      pieces.push_back({static_cast<int32_t>(sequence), static_cast<int32_t>(h), first, end - first});
    }
    first = end;
  }
}

// Takes the tokens that do not see `key` from the front of a job.
void skip_tokens(AttentionJob& job, int64_t key) {
  int64_t blind = 0;
  while (blind < job.tokens && job.key_limits[blind] <= key) blind++;
  job.q += blind * job.q_stride;
  job.o += blind * job.o_stride;
  job.key_limits += blind;
  job.position += blind;
  job.tokens -= blind;
}

// Runs fill(piece, job, key_limits) and the kernel for every piece. `work`: multiply-adds of all pieces together.
template <class Fill>
void run_pieces(const std::vector<Piece>& pieces, int64_t group, int64_t head_dim, double work, bool bf16,
                const Fill& fill) {
  if (pieces.empty()) return;
  const double per_nanosecond = bf16 ? 60.0 : 15.0;  // multiply-adds
  const double cost = work / per_nanosecond / static_cast<double>(pieces.size());
  const AttentionKernels& kernel = kernels().attention;
  parallel_for(static_cast<int64_t>(pieces.size()), grain_for(cost), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      const int64_t rows = piece.tokens * group;
      const auto workspace = [&](int64_t bytes) {
        return static_cast<float*>(thread_scratch(Scratch::kExtra, static_cast<size_t>(bytes)));
      };
      auto* limits =
          static_cast<int32_t*>(thread_scratch(Scratch::kRow, static_cast<size_t>(piece.tokens) * sizeof(int32_t)));
      AttentionJob job = {};
      job.tokens = piece.tokens;
      job.group = group;
      job.head_dim = head_dim;
      job.key_limits = limits;
      fill(piece, job, limits);
      if (bf16) skip_tokens(job, kernel.run_bf16(job, workspace(bf16_attention_workspace_bytes(rows, head_dim))));
      if (job.tokens > 0) kernel.run(job, workspace(attention_workspace_bytes(rows, head_dim)));
    }
  });
}

struct KeyRange {
  int64_t begin, end;
};

// The keys that row i of a sequence sees (QfMask).
KeyRange visible_keys(const QfAttention& a, int64_t i, int64_t rows, int64_t keys) {
  const int64_t queries = std::min<int64_t>(a.num_query, keys);
  switch (a.mask) {
    case QF_MASK_CAUSAL:
      return {0, std::clamp<int64_t>(i + keys - rows + 1, 0, keys)};
    case QF_MASK_ITC:
      return i < a.num_query ? KeyRange{0, queries} : KeyRange{queries, keys};
    case QF_MASK_ITG:
      return {0, std::min(std::max<int64_t>(i, a.num_query - 1) + 1, keys)};
    default:
      return {0, keys};
  }
}

// The bias of query heads from `head` on, for tokens from `position` on. Args: QfAttention or QfPagedAttention.
template <class Args>
void set_bias(AttentionJob& job, const Args& a, int64_t head, int64_t position) {
  if (a.bias == nullptr) return;
  job.bias = a.bias + head * a.bias_span;
  job.bias_span = a.bias_span;
  job.bias_origin = a.bias_origin;
  job.position = position;
}

// Block numbers of the context must lie in the cache; sequences without new tokens are not looked at.
QfStatus check_block_table(const QfPagedAttention& a) {
  for (int64_t b = 0; b < a.batch; ++b) {
    if (a.cu_seqlens_q[b] == a.cu_seqlens_q[b + 1]) continue;
    const int64_t length = a.context_lens[b];
    if (length < 0 || length > a.max_blocks * a.block_size) {
      return fail(QF_INVALID_ARGUMENT, "pagedAttention: contextLens[%lld] is %lld, the block table holds %lld tokens",
                  static_cast<long long>(b), static_cast<long long>(length),
                  static_cast<long long>(a.max_blocks * a.block_size));
    }
    const int32_t* table = a.block_table + b * a.max_blocks;
    for (int64_t i = 0; i < (length + a.block_size - 1) / a.block_size; ++i) {
      if (table[i] >= 0 && table[i] < a.blocks) continue;
      return fail(QF_INVALID_ARGUMENT, "pagedAttention: blockTable[%lld][%lld] is %d, outside [0, %lld)",
                  static_cast<long long>(b), static_cast<long long>(i), table[i], static_cast<long long>(a.blocks));
    }
  }
  return QF_OK;
}

}  // namespace

QfStatus attention(int32_t, const QfAttention* args) {
  const auto& a = *args;
  QfStatus status = check_offsets("attention", "cuSeqlensQ", a.cu_seqlens_q, a.batch, a.tokens_q);
  if (status == QF_OK) status = check_offsets("attention", "cuSeqlensK", a.cu_seqlens_k, a.batch, a.tokens_k);
  if (status != QF_OK) return status;

  const int64_t group = a.heads / a.kv_heads, head_dim = a.head_dim;
  const bool bf16 = takes_bf16(a.math);
  std::vector<Piece> pieces;
  double work = 0.0;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t rows = a.cu_seqlens_q[b + 1] - a.cu_seqlens_q[b], keys = a.cu_seqlens_k[b + 1] - a.cu_seqlens_k[b];
    // Rows of one piece share their first key, which the ITC mask changes at num_query.
    add_pieces(pieces, b, rows, a.mask == QF_MASK_ITC ? a.num_query : 0, group, a.kv_heads);
    work += 2.0 * static_cast<double>(rows * keys * a.heads * head_dim);
  }
  run_pieces(pieces, group, head_dim, work, bf16, [&](const Piece& piece, AttentionJob& job, int32_t* limits) {
    const int64_t q0 = a.cu_seqlens_q[piece.sequence], rows = a.cu_seqlens_q[piece.sequence + 1] - q0;
    const int64_t k0 = a.cu_seqlens_k[piece.sequence], keys = a.cu_seqlens_k[piece.sequence + 1] - k0;
    const int64_t head = piece.kv_head * group;
    job.q = static_cast<const float*>(a.q) + (q0 + piece.first) * a.q_stride + head * head_dim;
    job.o = static_cast<float*>(a.o) + ((q0 + piece.first) * a.heads + head) * head_dim;
    job.q_stride = a.q_stride;
    job.o_stride = a.heads * head_dim;
    job.k = static_cast<const float*>(a.k) + k0 * a.k_stride + piece.kv_head * head_dim;
    job.v = static_cast<const float*>(a.v) + k0 * a.v_stride + piece.kv_head * head_dim;
    job.k_stride = a.k_stride;
    job.v_stride = a.v_stride;
    job.dtype = QF_F32;
    job.scale = a.scale;
    set_bias(job, a, head, keys - rows + piece.first);
    job.first_key = visible_keys(a, piece.first, rows, keys).begin;
    for (int64_t t = 0; t < piece.tokens; ++t) {
      limits[t] = static_cast<int32_t>(visible_keys(a, piece.first + t, rows, keys).end);
    }
  });
  return QF_OK;
}

QfStatus paged_attention(int32_t, const QfPagedAttention* args) {
  const auto& a = *args;
  QfStatus status = check_offsets("pagedAttention", "cuSeqlensQ", a.cu_seqlens_q, a.batch, a.tokens);
  if (status == QF_OK) status = check_block_table(a);
  if (status != QF_OK) return status;

  const int64_t group = a.heads / a.kv_heads, head_dim = a.head_dim;
  const auto size = static_cast<int64_t>(qf_dtype_size(a.cache_dtype));
  const bool bf16 = takes_bf16(a.math);
  std::vector<Piece> pieces;
  double work = 0.0;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t rows = a.cu_seqlens_q[b + 1] - a.cu_seqlens_q[b];
    add_pieces(pieces, b, rows, 0, group, a.kv_heads);
    // Few rows cost as much as a handful: bringing the keys in dominates.
    work += 2.0 * static_cast<double>(std::max<int64_t>(rows, 8) * a.context_lens[b] * a.heads * head_dim);
  }
  run_pieces(pieces, group, head_dim, work, bf16, [&](const Piece& piece, AttentionJob& job, int32_t* limits) {
    const int64_t q0 = a.cu_seqlens_q[piece.sequence], rows = a.cu_seqlens_q[piece.sequence + 1] - q0;
    const int64_t context = a.context_lens[piece.sequence], head = piece.kv_head * group;
    job.q = static_cast<const float*>(a.q) + (q0 + piece.first) * a.q_stride + head * head_dim;
    job.o = static_cast<float*>(a.o) + ((q0 + piece.first) * a.heads + head) * head_dim;
    job.q_stride = a.q_stride;
    job.o_stride = a.heads * head_dim;
    job.k = static_cast<const char*>(a.k_cache) + piece.kv_head * head_dim * size;
    job.v = static_cast<const char*>(a.v_cache) + piece.kv_head * head_dim * size;
    job.k_stride = job.v_stride = a.kv_heads * head_dim;
    job.block_table = a.block_table + piece.sequence * a.max_blocks;
    job.block_size = a.block_size;
    job.dtype = a.cache_dtype;
    job.scale = a.scale;
    set_bias(job, a, head, context - rows + piece.first);
    for (int64_t t = 0; t < piece.tokens; ++t) {
      limits[t] = static_cast<int32_t>(std::clamp<int64_t>(context - rows + piece.first + t + 1, 0, context));
    }
  });
  return QF_OK;
}

}  // namespace qformer::cpu
