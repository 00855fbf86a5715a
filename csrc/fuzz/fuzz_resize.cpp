// The image path: any pixels at any size resize and normalise, or are refused.
#include "cpu/cpu_backend.h"
#include "input.h"
#include "ops/ops.h"

using namespace qformer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool registered = (register_backend(cpu::cpu_backend()), true);
  (void)registered;
  fuzz::Input input(data, size);
  try {
    Device& device = find_device("cpu");
    const int64_t channels = input.byte() % 16 == 0 ? input.extent(4) : 3;
    const int64_t height = input.extent(40);
    const int64_t width = input.extent(40);
    const int64_t out_height = input.extent(100);
    const int64_t out_width = input.extent(100);
    if (out_height > 4096 || out_width > 4096) return 0;
    const Tensor x = input.tensor(device, Shape{height, width, channels}, QF_U8);
    const Tensor y = ops::resize_bicubic(x, out_height, out_width);
    fuzz::touch(y);
    fuzz::touch(ops::normalize_image(y, 1 / 255.0, {0.5, 0.4, 0.3}, {0.2, input.number(), 0.3}));
  } catch (const Error&) {
  }
  return 0;
}
