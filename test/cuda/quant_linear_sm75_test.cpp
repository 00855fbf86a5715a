// quant_linear in f16 on the oldest architecture: m16n8k8 products, no cp.async and 64 KB of shared memory, which sends
// more than 16 rows to widened weights.
#include "emulator/launch.h"
#include "quant_product.h"

using namespace qformer;
using namespace qformer::test;

TEST("few and many rows have the bits of linear on sm_75") {
  emulator::set_arch(75);
  for (const int32_t bits : {8, 4}) {
    check_product({{51, 96, 32, bits}, 1, QF_F16, QF_F16, true, true, true, QF_ACT_SILU}, true);
    for (const int64_t m : {2, 16, 32, 40}) check_product({{24, 2816, 64, bits}, m, QF_F16, QF_F16}, false);
  }
}
