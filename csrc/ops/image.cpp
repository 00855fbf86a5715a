// Pixels to the ViT's input. See QfResizeBicubic and QfNormalizeImage in backend/backend.h.
#include "ops/check.h"
#include "ops/ops.h"

namespace qformer::ops {
namespace {

// Far beyond any vision tower, and far below where size arithmetic could overflow.
constexpr int64_t kMaxSide = 1 << 20;

void check_pixels(const char* op, const Tensor& x) {
  check_dtype(op, "x", x, {QF_U8});
  check_rank(op, "x", x, 3, "[height, width, 3]");
  check_shape(op, "x", x, Shape{x.shape[0], x.shape[1], 3});
  check_dense(op, "x", x);
  check_range(op, "height", x.shape[0], 1, kMaxSide);
  check_range(op, "width", x.shape[1], 1, kMaxSide);
}

}  // namespace

Tensor resize_bicubic(const Tensor& x, int64_t out_height, int64_t out_width) {
  constexpr const char* kOp = "resizeBicubic";
  check_pixels(kOp, x);
  check_range(kOp, "outHeight", out_height, 1, kMaxSide);
  check_range(kOp, "outWidth", out_width, 1, kMaxSide);
  Tensor y = empty_tensor(x.device(), Shape{out_height, out_width, 3}, QF_U8);
  const QfResizeBicubic args{x.as<uint8_t>(), y.as<uint8_t>(), x.shape[0], x.shape[1], out_height, out_width};
  launch(x.device(), kOp, x.device().backend->resize_bicubic, args, y, x);
  return y;
}

Tensor normalize_image(const Tensor& x, double rescale, const std::array<double, 3>& mean,
                       const std::array<double, 3>& std) {
  constexpr const char* kOp = "normalizeImage";
  check_pixels(kOp, x);
  Tensor y = empty_tensor(x.device(), Shape{3, x.shape[0], x.shape[1]}, QF_F32);
  QfNormalizeImage args{};
  args.x = x.as<uint8_t>();
  args.y = y.as<float>();
  args.height = x.shape[0];
  args.width = x.shape[1];
  args.rescale = rescale;
  for (int channel = 0; channel < 3; ++channel) {
    if (!(std[channel] > 0)) fail(ErrorCode::kInvalidArgument, "normalizeImage: std must be positive");
    args.mean[channel] = static_cast<float>(mean[channel]);
    args.std[channel] = static_cast<float>(std[channel]);
  }
  launch(x.device(), kOp, x.device().backend->normalize_image, args, y, x);
  return y;
}

}  // namespace qformer::ops
