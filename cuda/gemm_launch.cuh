// The launch of a planned product for one 16-bit dtype; gemm_f16.cu and gemm_bf16.cu compile it once each.
#pragma once

#include "gemm_kernel.cuh"
#include "gemm_plan.h"
#include "runtime/launch.h"

namespace qformer::cuda {

template <class T, class Tile, bool kGated, bool kAligned, bool kSerial>
QfStatus launch_tile(DeviceContext& context, const char* name, const GemmArgs& args, const GemmPlan& plan) {
  const dim3 grid(static_cast<unsigned>(plan.tiles_m) * static_cast<unsigned>(plan.tiles_n),
                  static_cast<unsigned>(plan.chunks));
  return launch(name, context.stream, gemm_kernel<T, Tile, kGated, kAligned, kSerial>, grid, dim3(Tile::kThreads),
                plan.shared_bytes, args);
}

template <class T>
QfStatus launch_gemm(DeviceContext& context, const char* name, const GemmArgs& args, const GemmPlan& plan) {
  const bool gated = args.w_up != nullptr;
  switch (plan.kernel) {
    case GemmKernel::kLarge:
      return gated ? launch_tile<T, LargeTile, true, true, false>(context, name, args, plan)
                   : launch_tile<T, LargeTile, false, true, false>(context, name, args, plan);
    case GemmKernel::kMedium:
      return gated ? launch_tile<T, MediumTile, true, true, false>(context, name, args, plan)
                   : launch_tile<T, MediumTile, false, true, false>(context, name, args, plan);
    case GemmKernel::kSerial:
      return launch_tile<T, SerialTile, false, true, true>(context, name, args, plan);
    case GemmKernel::kTall:
      return launch_tile<T, TallTile, false, true, false>(context, name, args, plan);
    case GemmKernel::kSmall:
      return gated ? launch_tile<T, SmallTile, true, true, false>(context, name, args, plan)
                   : launch_tile<T, SmallTile, false, true, false>(context, name, args, plan);
    case GemmKernel::kUnaligned:
      return gated ? launch_tile<T, SmallTile, true, false, false>(context, name, args, plan)
                   : launch_tile<T, SmallTile, false, false, true>(context, name, args, plan);
  }
  return fail(QF_INTERNAL, "%s: no such kernel", name);
}

}  // namespace qformer::cuda
