// The ViT's input: patches are copied out as rows [grid_h * grid_w, channels * patch²] (im2col without overlap) and go
// through the linear kernels, with the positions as residual; row 0 of each image is the class token plus its position.

#include <cstring>

#include "families.h"
#include "kernels.h"
#include "linear.h"
#include "scratch.h"
#include "thread_pool.h"

namespace qformer::cpu {
namespace {

// One row of patches of one image: out is [width / patch, channels * patch * patch].
void copy_patches(const QfPatchEmbedding& args, const float* image, int64_t grid_row, float* out) {
  const int64_t p = args.patch;
  const int64_t grid_w = args.width / p;
  for (int64_t column = 0; column < grid_w; column++) {
    for (int64_t c = 0; c < args.channels; c++) {
      for (int64_t i = 0; i < p; i++, out += p) {
        const float* source = image + (c * args.height + grid_row * p + i) * args.width + column * p;
        std::memcpy(out, source, static_cast<size_t>(p) * sizeof(float));
      }
    }
  }
}

void class_row(const QfPatchEmbedding& args, float* y) {
  for (int64_t i = 0; i < args.dim; i++) y[i] = args.class_embedding[i] + args.positions[i];
}

}  // namespace

QfStatus patch_embedding(int32_t, const QfPatchEmbedding* args) {
  const int64_t grid_h = args->height / args->patch;
  const int64_t grid_w = args->width / args->patch;
  const int64_t patches = grid_h * grid_w;
  const int64_t k = args->channels * args->patch * args->patch;
  auto* rows = static_cast<float*>(thread_scratch(Scratch::kPatches, static_cast<size_t>(patches * k) * sizeof(float)));
  for (int64_t b = 0; b < args->batch; b++) {
    const float* image = args->x + b * args->channels * args->height * args->width;
    float* y = static_cast<float*>(args->y) + b * (1 + patches) * args->dim;
    parallel_for(grid_h, grain_for(0.3 * static_cast<double>(grid_w * k)), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) copy_patches(*args, image, row, rows + row * grid_w * k);
    });
    class_row(*args, y);
    run_linear({.x = rows,
                .w = args->w,
                .bias = args->bias,
                .residual = args->positions + args->dim,
                .y = y + args->dim,
                .m = patches,
                .n = args->dim,
                .k = k,
                .ldx = k,
                .ldw = k,
                .ldr = args->dim,
                .ldy = args->dim,
                .w_dtype = args->w_dtype,
                .activation = QF_ACT_NONE,
                .math = args->math});
  }
  return QF_OK;
}

}  // namespace qformer::cpu
