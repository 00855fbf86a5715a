// The ViT's input. Patches become rows of k = channels · patch² values (a stride-patch convolution has no overlap), one
// GEMM multiplies them with the filters and adds bias and positions in its epilogue, and the class rows are written
// beside.
//
// One small kernel makes the rows, in 16 bits padded with zeros to a multiple of 8 columns (k = 588 for patches of 14),
// pads the filters likewise and writes the class rows: pixels and filters are read once, the copies stay in L2.
#include "entry.h"
#include "gemm.h"
#include "prims/global.h"
#include "runtime/launch.h"

namespace qformer::cuda {
namespace {

constexpr int kThreads = 256;
constexpr size_t kScratchAlignment = 256;

struct PatchArgs {
  const float* pixels;  // [batch, channels, height, width]
  const void* w;        // [dim, k] w_dtype; null: not padded
  const float* class_embedding;
  const float* positions;
  void* rows;      // [batch * patches, ld] dtype
  void* padded_w;  // [dim, ld] w_dtype
  void* y;         // [batch * (1 + patches), dim] dtype
  int32_t batch, channels, height, width, patch, dim;
  int32_t grid_w, patches;  // per image
  int32_t k, ld;
};

// Row `index` of the patches of all images.
template <class T>
QF_DEVICE void make_row(const PatchArgs& args, int index) {
  const int image = index / args.patches, place = index % args.patches;
  const int top = place / args.grid_w * args.patch, left = place % args.grid_w * args.patch;
  const int area = args.patch * args.patch;
  const Global<const float> pixels =
      Global<const float>(args.pixels) + static_cast<int64_t>(image) * args.channels * args.height * args.width;
  const Global<T> row = Global<T>(static_cast<T*>(args.rows)) + static_cast<int64_t>(index) * args.ld;
  for (int i = static_cast<int>(threadIdx.x); i < args.ld; i += kThreads) {
    float value = 0.0f;
    if (i < args.k) {
      const int channel = i / area, y = i % area / args.patch, x = i % args.patch;
      value = pixels.load((static_cast<int64_t>(channel) * args.height + top + y) * args.width + left + x);
    }
    row.store(i, from_float<T>(value));
  }
}

template <class T>
QF_DEVICE void pad_filter(const PatchArgs& args, int index) {
  const Global<const T> from = Global<const T>(static_cast<const T*>(args.w)) + static_cast<int64_t>(index) * args.k;
  const Global<T> to = Global<T>(static_cast<T*>(args.padded_w)) + static_cast<int64_t>(index) * args.ld;
  for (int i = static_cast<int>(threadIdx.x); i < args.ld; i += kThreads) to.store(i, i < args.k ? from.load(i) : T{});
}

template <class T>
QF_DEVICE void write_class_row(const PatchArgs& args, int image) {
  const Global<const float> token(args.class_embedding), positions(args.positions);
  const Global<T> y = Global<T>(static_cast<T*>(args.y)) + static_cast<int64_t>(image) * (1 + args.patches) * args.dim;
  for (int i = static_cast<int>(threadIdx.x); i < args.dim; i += kThreads) {
    y.store(i, from_float<T>(token.load(i) + positions.load(i)));
  }
}

// Blocks: one per patch, then one per image, then one per filter where filters are padded.
template <class T>
QF_KERNEL void QF_LAUNCH_BOUNDS(kThreads, 4) patch_rows_kernel(PatchArgs args) {
  int index = static_cast<int>(blockIdx.x);
  if (index < args.batch * args.patches) return make_row<T>(args, index);
  index -= args.batch * args.patches;
  if (index < args.batch) return write_class_row<T>(args, index);
  pad_filter<T>(args, index - args.batch);
}

template <class T>
QfStatus make_rows(DeviceContext& context, const PatchArgs& args) {
  const int64_t blocks = int64_t{args.batch} * args.patches + args.batch + (args.w != nullptr ? args.dim : 0);
  return launch("patch_embedding", context.stream, patch_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)),
                dim3(kThreads), 0, args);
}

size_t aligned(size_t bytes) { return (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment; }

PatchArgs describe(const QfPatchEmbedding& args) {
  PatchArgs out{};
  out.pixels = args.x;
  out.class_embedding = args.class_embedding;
  out.positions = args.positions;
  out.y = args.y;
  out.batch = static_cast<int32_t>(args.batch);
  out.channels = static_cast<int32_t>(args.channels);
  out.height = static_cast<int32_t>(args.height);
  out.width = static_cast<int32_t>(args.width);
  out.patch = static_cast<int32_t>(args.patch);
  out.dim = static_cast<int32_t>(args.dim);
  out.grid_w = static_cast<int32_t>(args.width / args.patch);
  out.patches = static_cast<int32_t>(args.height / args.patch) * out.grid_w;
  out.k = static_cast<int32_t>(args.channels * args.patch * args.patch);
  out.ld = args.dtype == QF_F32 ? out.k : (out.k + 7) / 8 * 8;
  return out;
}

GemmArgs product(const QfPatchEmbedding& args, const PatchArgs& patches) {
  GemmArgs gemm{};
  gemm.bias = args.bias;
  gemm.residual = args.positions;
  gemm.y = args.y;
  gemm.ldx = gemm.ldw = patches.ld;
  gemm.ldr = gemm.ldy = args.dim;
  gemm.m = patches.batch * patches.patches;
  gemm.n = patches.dim;
  gemm.k = patches.ld;  // the padding is zero on both sides
  gemm.activation = QF_ACT_NONE;
  gemm.y_f32 = args.dtype == QF_F32;
  gemm.residual_f32 = 1;
  gemm.row_period = patches.patches;
  gemm.round_x_to_bf16 = args.math == QF_MATH_BF16 && args.w_dtype == QF_BF16;
  return gemm;
}

}  // namespace

QfStatus patch_embedding(int32_t device, const QfPatchEmbedding* args) {
  if (args->batch <= 0 || args->dim <= 0) return QF_OK;
  DeviceContext& context = context_of(device);
  PatchArgs patches = describe(*args);
  GemmArgs gemm = product(*args, patches);
  const bool pad_w = patches.ld != patches.k;
  const size_t size = qf_dtype_size(args->dtype);
  const size_t rows_bytes = aligned(static_cast<size_t>(gemm.m) * static_cast<size_t>(patches.ld) * size);
  const size_t w_bytes = pad_w ? aligned(static_cast<size_t>(patches.dim) * static_cast<size_t>(patches.ld) * size) : 0;
  gemm.w = pad_w ? nullptr : args->w;  // null stands for scratch, which is aligned as well
  const size_t product_bytes = gemm_workspace(context, gemm, args->dtype);
  void* memory = nullptr;
  if (const QfStatus status = context.scratch(rows_bytes + w_bytes + product_bytes, &memory); status != QF_OK)
    return status;
  char* const bytes = static_cast<char*>(memory);
  patches.rows = bytes;
  gemm.x = bytes;
  if (pad_w) {
    patches.w = args->w;
    patches.padded_w = bytes + rows_bytes;
    gemm.w = patches.padded_w;
  }
  const QfStatus status = args->dtype == QF_F32   ? make_rows<float>(context, patches)
                          : args->dtype == QF_F16 ? make_rows<Half>(context, patches)
                                                  : make_rows<BFloat16>(context, patches);
  if (status != QF_OK) return status;
  return run_gemm(context, "patch_embedding", gemm, args->dtype, args->w_dtype, bytes + rows_bytes + w_bytes);
}

}  // namespace qformer::cuda
