// Resize and normalisation on the emulated GPU: the CPU backend's bytes and bits.
#include "cpu/cpu_backend.h"
#include "device_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

std::vector<uint8_t> pixels_of(int64_t height, int64_t width) {
  Random random(static_cast<uint64_t>(height * 1000 + width));
  std::vector<uint8_t> pixels(static_cast<size_t>(height * width * 3));
  // runs of extremes, where the cubic overshoots, among noise
  for (uint8_t& value : pixels) {
    const uint32_t word = random.next();
    value = word % 3 == 0 ? 0 : word % 3 == 1 ? 255 : static_cast<uint8_t>(word >> 24);
  }
  return pixels;
}

void check_resize(int64_t height, int64_t width, int64_t out_height, int64_t out_width) {
  const auto x = pixels_of(height, width);
  std::vector<uint8_t> expected(static_cast<size_t>(out_height * out_width * 3));
  const QfResizeBicubic on_cpu = {x.data(), expected.data(), height, width, out_height, out_width};
  CHECK_EQ(qformer::cpu::cpu_backend()->resize_bicubic(0, &on_cpu), QF_OK);
  DeviceBytes in(x.size());
  const DeviceBytes out(expected.size());
  in.upload(x.data());
  const QfResizeBicubic args = {
      static_cast<const uint8_t*>(in.data()), static_cast<uint8_t*>(out.data()), height, width, out_height, out_width};
  CHECK_EQ(backend().resize_bicubic(0, &args), QF_OK);
  if (out.download() != expected) fail(__FILE__, __LINE__, "resize to " + std::to_string(out_width) + " differs");
}

}  // namespace

TEST("a resize gives the CPU's bytes") {
  check_resize(37, 53, 24, 24);
  check_resize(9, 7, 30, 41);
  check_resize(1, 1, 5, 3);
  check_resize(257, 100, 24, 32);
  check_resize(20, 33, 1, 1);
  check_resize(200, 31, 40, 150);
}

TEST("a resize of one axis, and of none, gives the CPU's bytes") {
  check_resize(21, 40, 21, 24);
  check_resize(50, 20, 24, 20);
  check_resize(50, 21, 24, 21);
  check_resize(13, 17, 13, 17);
}

TEST("normalisation gives the CPU's bits for every pixel value") {
  for (const int64_t width : {1, 7, 100}) {
    const int64_t height = 13;
    auto x = pixels_of(height, width);
    for (size_t i = 0; i < x.size() && i < 768; ++i) x[i] = static_cast<uint8_t>(i / 3);
    std::vector<float> expected(x.size());
    const double rescale = 1.0 / 255;
    QfNormalizeImage args = {x.data(),
                             expected.data(),
                             height,
                             width,
                             rescale,
                             {0.48145466f, 0.4578275f, 0.40821073f},
                             {0.26862954f, 0.26130258f, 0.27577711f}};
    CHECK_EQ(qformer::cpu::cpu_backend()->normalize_image(0, &args), QF_OK);
    DeviceBytes in(x.size());
    in.upload(x.data());
    const DeviceArray out(std::vector<float>(x.size(), NAN), QF_F32);
    args.x = static_cast<const uint8_t*>(in.data());
    args.y = out.floats();
    CHECK_EQ(backend().normalize_image(0, &args), QF_OK);
    CHECK(out.read() == expected);
  }
}

TEST("a resize inside a graph is refused, with a reason") {
  DeviceBytes in(12);
  in.upload(pixels_of(2, 2).data());
  const DeviceBytes out(27);
  const QfResizeBicubic args = {static_cast<const uint8_t*>(in.data()), static_cast<uint8_t*>(out.data()), 2, 2, 3, 3};
  CHECK_EQ(backend().capture_begin(0), QF_OK);
  CHECK_EQ(backend().resize_bicubic(0, &args), QF_UNSUPPORTED);
  CHECK(std::string(backend().last_error()).find("graph") != std::string::npos);
  void* graph = nullptr;
  CHECK_EQ(backend().capture_end(0, &graph), QF_UNSUPPORTED);
  CHECK(graph == nullptr);
}
