// The resize against a direct two-pass evaluation of Pillow's recipe, and the pixel normalisation.
#include <cmath>
#include <cstring>

#include "cpu/families.h"
#include "levels.h"
#include "random_data.h"
#include "test.h"

using namespace qformer;
using qformer::test::on_every_level;
using qformer::test::Random;

namespace {

std::vector<uint8_t> random_image(int64_t height, int64_t width, uint64_t seed) {
  Random random(seed);
  std::vector<uint8_t> pixels(static_cast<size_t>(height * width * 3));
  for (uint8_t& value : pixels) value = static_cast<uint8_t>(random.next() >> 24);
  return pixels;
}

std::vector<uint8_t> resize(const std::vector<uint8_t>& x, int64_t height, int64_t width, int64_t out_height,
                            int64_t out_width) {
  std::vector<uint8_t> y(static_cast<size_t>(out_height * out_width * 3), 77);
  const QfResizeBicubic args = {x.data(), y.data(), height, width, out_height, out_width};
  CHECK_EQ(cpu::resize_bicubic(0, &args), QF_OK);
  return y;
}

double cubic(double x) {
  x = std::fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// One line of `in` samples, `step` apart, to `out` samples.
void resize_line(const uint8_t* x, int64_t in, int64_t x_step, uint8_t* y, int64_t out, int64_t y_step) {
  const double scale = static_cast<double>(in) / static_cast<double>(out), filter = std::max(scale, 1.0);
  for (int64_t i = 0; i < out; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * scale;
    const auto lo = std::max<int64_t>(0, static_cast<int64_t>(centre - 2 * filter + 0.5));
    const auto hi = std::min<int64_t>(in, static_cast<int64_t>(centre + 2 * filter + 0.5));
    double total = 0;
    for (int64_t k = lo; k < hi; ++k) total += cubic((static_cast<double>(k) - centre + 0.5) / filter);
    int64_t sum = 1 << 21;
    for (int64_t k = lo; k < hi; ++k) {
      const double weight = cubic((static_cast<double>(k) - centre + 0.5) / filter) / total;
      sum += std::llround(weight * (1 << 22)) * x[k * x_step];
    }
    y[i * y_step] = static_cast<uint8_t>(std::min<int64_t>(255, std::max<int64_t>(0, sum >> 22)));
  }
}

std::vector<uint8_t> resize_plainly(const std::vector<uint8_t>& x, int64_t height, int64_t width, int64_t out_height,
                                    int64_t out_width) {
  std::vector<uint8_t> rows(static_cast<size_t>(height * out_width * 3)),
      y(static_cast<size_t>(out_height * out_width * 3));
  for (int64_t r = 0; r < height; ++r) {
    for (int c = 0; c < 3; ++c)
      resize_line(&x[r * width * 3 + c], width, 3, &rows[r * out_width * 3 + c], out_width, 3);
  }
  for (int64_t j = 0; j < out_width * 3; ++j)
    resize_line(&rows[j], height, out_width * 3, &y[j], out_height, out_width * 3);
  return y;
}

}  // namespace

TEST("resizing equals the plain two-pass recipe for odd sizes, one-pixel inputs and both directions") {
  const int64_t sizes[][4] = {{1, 1, 7, 5},       {1, 200, 56, 56},  {257, 1, 56, 56},    {77, 123, 56, 224},
                              {31, 450, 33, 19},  {100, 17, 100, 5}, {9, 64, 30, 63},     {2, 3, 1, 1},
                              {40, 40, 41, 39},   {17, 65, 5, 40},   {33, 63, 9, 300},    {16, 128, 8, 31},
                              {19, 1000, 224, 7}, {5, 191, 20, 190}, {18, 2500, 224, 224}};
  uint64_t seed = 1;
  for (const auto& s : sizes) {
    const auto x = random_image(s[0], s[1], seed++);
    const auto expected = resize_plainly(x, s[0], s[1], s[2], s[3]);
    on_every_level([&] { CHECK(resize(x, s[0], s[1], s[2], s[3]) == expected); });
  }
}

TEST("extreme pixels next to each other are resized as by the plain recipe, where sums overshoot on both sides") {
  for (const int64_t period : {1, 2, 3, 7}) {
    std::vector<uint8_t> x(static_cast<size_t>(40 * 130 * 3));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int64_t>(i) / 3 / period % 2 == 0 ? 255 : 0;
    for (const int64_t width : {129, 131, 37, 500}) {
      const auto expected = resize_plainly(x, 40, 130, 30, width);
      on_every_level([&] { CHECK(resize(x, 40, 130, 30, width) == expected); });
    }
  }
}

TEST("resizing to the same size copies the pixels") {
  const auto x = random_image(13, 21, 5);
  CHECK(resize(x, 13, 21, 13, 21) == x);
}

TEST("a very long and thin image is resized without overflow") {
  const std::vector<uint8_t> x(static_cast<size_t>(3 * 2'000'000), 200);
  CHECK(resize(x, 1, 2'000'000, 3, 2) == std::vector<uint8_t>(18, 200));
  CHECK(resize(x, 2'000'000, 1, 2, 3) == std::vector<uint8_t>(18, 200));
}

TEST("pixels are rescaled in double, rounded once and normalised into planes") {
  const auto x = random_image(5, 7, 9);
  std::vector<float> y(105);
  const QfNormalizeImage args = {x.data(),
                                 y.data(),
                                 5,
                                 7,
                                 1.0 / 255,
                                 {0.48145466f, 0.4578275f, 0.40821073f},
                                 {0.26862954f, 0.26130258f, 0.27577711f}};
  CHECK_EQ(cpu::normalize_image(0, &args), QF_OK);
  for (int c = 0; c < 3; ++c) {
    for (int i = 0; i < 35; ++i) {
      const auto scaled = static_cast<float>(x[i * 3 + c] * (1.0 / 255));
      CHECK_EQ(y[c * 35 + i], (scaled - args.mean[c]) / args.std[c]);
    }
  }
}
