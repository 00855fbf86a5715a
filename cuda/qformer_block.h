// What the kernels of the Q-Former's cross-attention block share. Only the num_query rows that attend are worked on, so
// row r of the intermediate tensors is row r % num_query of sequence r / num_query.
#pragma once

#include "backend/backend.h"
#include "runtime/device.h"

namespace qformer::cuda {

struct QFormerBlock {
  QfQFormerCrossAttention args;
  int32_t hidden, rows;  // rows: batch * num_query
  void* q;               // [rows, hidden] dtype; the plain path only
  void* context;         // [rows, hidden] dtype: attention's output
  float* sum;            // [rows, hidden]: x + output projection, before the norm
  int32_t* arrivals;     // one per tile of 16 rows, zero between launches; the fused path only
};

// Two launches: projection of q and attention per (16 queries, head, image), then output projection, residual and norm.
// T: Half or BFloat16; head_dim 64.
template <class T>
QfStatus launch_fused_block(DeviceContext& context, const QFormerBlock& block);

// Any dtype, any head_dim: projection, attention, projection, norm.
QfStatus launch_plain_block(DeviceContext& context, const QFormerBlock& block);

}  // namespace qformer::cuda
