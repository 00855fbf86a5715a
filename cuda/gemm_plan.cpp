#include "gemm_plan.h"

#include <algorithm>

#include "gemm_tile.cuh"

namespace qformer::cuda {
namespace {

constexpr int32_t kNeverCut = 1 << 20;                  // weight rows of a product whose k stays in one piece
constexpr size_t kMaxPartialsBytes = size_t{32} << 20;  // so that they stay in L2, and scratch small
constexpr int32_t kMaxTickets = 4096;                   // DeviceContext::counters has so many

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

// One row of the tile table. Rates are relative to the best kernel's throughput of a multiprocessor; they decide ties
// between wave quantisation and reuse and want measuring on every architecture.
struct TileEntry {
  GemmKernel kernel;
  int32_t rows, weights;
  double alone;    // rate of one block that has a multiprocessor to itself
  double full;     // rate of as many blocks as fit
  int32_t blocks;  // per multiprocessor, wanted
  size_t (*shared_bytes)(int);
};

template <class Tile>
constexpr TileEntry entry(GemmKernel kernel, double alone, double full, int32_t blocks) {
  return {kernel, Tile::kRows, Tile::kWeights, alone, full, blocks, gemm_shared_bytes<Tile>};
}

// In the order of GemmKernel.
constexpr TileEntry kTiles[] = {
    entry<LargeTile>(GemmKernel::kLarge, 1.00, 1.00, 1),   entry<MediumTile>(GemmKernel::kMedium, 0.65, 0.95, 2),
    entry<SerialTile>(GemmKernel::kSerial, 0.80, 0.80, 1), entry<TallTile>(GemmKernel::kTall, 0.50, 0.80, 2),
    entry<SmallTile>(GemmKernel::kSmall, 0.30, 0.65, 3),   entry<SmallTile>(GemmKernel::kUnaligned, 0.05, 0.10, 2),
};

// Time of one f32 of partial sums, written and read back through L2, in multiply-adds at rate 1: 8 bytes at some 40
// GB/s per multiprocessor against 2 · 10^12 multiply-adds a second.
constexpr double kPartialCost = 400.0;

// Stages of the ring: as many as let the wanted blocks share a multiprocessor, at least 3; then fewer blocks. 0 when
// not even two stages fit.
int32_t stages_for(const TileEntry& tile, size_t shared_limit) {
  constexpr size_t kReserved = 1024;  // per block, by the system
  for (int32_t blocks = tile.blocks; blocks >= 1; --blocks) {
    for (int stages = 4; stages >= 3; --stages) {
      if (static_cast<size_t>(blocks) * (tile.shared_bytes(stages) + kReserved) <= shared_limit + kReserved)
        return stages;
    }
  }
  return tile.kernel != GemmKernel::kLarge && tile.shared_bytes(2) <= shared_limit ? 2 : 0;
}

bool serves(const TileEntry& tile, const GemmArgs& args, bool aligned, int32_t chunks) {
  const bool gated = args.w_up != nullptr;
  switch (tile.kernel) {
    case GemmKernel::kUnaligned:
      return !aligned;
    case GemmKernel::kLarge:
    case GemmKernel::kMedium:
      return aligned && chunks == 1;
    case GemmKernel::kSerial:
      return aligned && chunks > 1;
    case GemmKernel::kTall:
      return aligned && !gated;
    default:
      return aligned;
  }
}

// Estimated time of the multiprocessor with the most work, in multiply-adds at rate 1.
double cost(const TileEntry& tile, const GemmPlan& plan, int32_t k, int32_t multiprocessors) {
  const int64_t blocks = static_cast<int64_t>(plan.tiles_m) * plan.tiles_n * plan.chunks;
  const double share = ceil_div(blocks, multiprocessors);
  const double elements = static_cast<double>(tile.rows) * tile.weights;
  const double block_work = elements * std::min(plan.chunks > 1 ? plan.k_chunk : k, k);
  const double partials = plan.chunks > 1 ? kPartialCost * elements : 0.0;
  return share * (block_work / std::min(tile.full, share * tile.alone) + partials);
}

}  // namespace

int32_t gemm_k_chunk(int32_t n, int32_t k) {
  // Enough chunks that five row tiles of 64 (one image of 257 rows) give a large GPU some 400 blocks, each with enough
  // steps to be worth its prologue.
  constexpr int32_t kWantedBlocks = 384, kMaxChunks = 4, kNarrow = 2048;
  const int32_t columns = ceil_div(n, 64);
  const int32_t least = n < kNarrow ? 704 : 2048;  // columns of k
  const int32_t chunks = std::clamp(std::min(ceil_div(kWantedBlocks, 4 * int64_t{columns}), k / least), 1, kMaxChunks);
  return std::max(ceil_div(ceil_div(k, chunks), kSplitAlign), 1) * kSplitAlign;
}

int32_t gemm_k_chunk(const GemmArgs& args) {
  // A gated product is as wide as two, and its blocks hold two factors: never cut.
  return gemm_k_chunk(args.w_up != nullptr ? kNeverCut : args.w_rows > 0 ? args.w_rows : args.n, args.k);
}

bool gemm_is_aligned(const GemmArgs& args) {
  const auto rows = [](const void* p, int64_t ld) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && ld % kCopyElements == 0;
  };
  return args.k % kCopyElements == 0 && rows(args.x, args.ldx) && rows(args.w, args.ldw) && rows(args.w_up, args.ldw);
}

bool plan_kernel(const GemmDevice& device, const GemmArgs& args, GemmKernel kernel, GemmPlan* plan) {
  const bool gated = args.w_up != nullptr;
  const int32_t k_chunk = gemm_k_chunk(args);
  const int32_t chunks = std::max(ceil_div(args.k, k_chunk), 1);
  const TileEntry& tile = kTiles[static_cast<int>(kernel)];
  if (!serves(tile, args, gemm_is_aligned(args), chunks)) return false;
  const int32_t stages = stages_for(tile, device.shared_limit);
  if (stages == 0) return false;
  const bool serial = kernel == GemmKernel::kSerial || kernel == GemmKernel::kUnaligned;
  *plan = {};
  plan->kernel = kernel;
  plan->k_chunk = k_chunk;
  plan->chunks = serial ? 1 : chunks;
  plan->tiles_m = ceil_div(args.m, tile.rows);
  plan->tiles_n = ceil_div(args.n, gated ? tile.weights / 2 : tile.weights);
  plan->stages = stages;
  plan->shared_bytes = tile.shared_bytes(stages);
  if (plan->chunks == 1) return true;
  const int64_t tiles = static_cast<int64_t>(plan->tiles_m) * plan->tiles_n;
  plan->partials_bytes = static_cast<size_t>(tiles * plan->chunks) * tile.rows * tile.weights * sizeof(float);
  return tiles <= kMaxTickets && plan->partials_bytes <= kMaxPartialsBytes;
}

GemmPlan plan_gemm(const GemmDevice& device, const GemmArgs& args) {
  GemmPlan best{};
  double best_cost = 0.0;
  for (const TileEntry& tile : kTiles) {
    GemmPlan plan;
    if (!plan_kernel(device, args, tile.kernel, &plan)) continue;
    const double plan_cost = cost(tile, plan, args.k, device.multiprocessors);
    if (best.stages == 0 || plan_cost < best_cost) {
      best = plan;
      best_cost = plan_cost;
    }
  }
  return best;
}

}  // namespace qformer::cuda
