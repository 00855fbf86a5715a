// LoRA merge on the emulated GPU: the CPU backend's bits, for every dtype of w.
#include "cpu/cpu_backend.h"
#include "device_array.h"
#include "random_data.h"

using namespace qformer::test;

namespace {

struct MergeCase {
  int64_t out, in, rank;
  int32_t dtype;
  bool in_place = false;
  size_t unaligned = 0;
};

void check_merge(const MergeCase& c) {
  const auto w = encoded(Random(1).floats(c.out * c.in), c.dtype);
  const auto a = Random(2).floats(c.rank * c.in), b = Random(3).floats(c.out * c.rank);
  std::vector<uint8_t> expected(w.size());
  QfLoraMerge args = {w.data(), a.data(), b.data(), expected.data(), c.out, c.in, c.rank, 0.37f, c.dtype};
  CHECK_EQ(qformer::cpu::cpu_backend()->lora_merge(0, &args), QF_OK);
  const size_t offset = c.unaligned * qf_dtype_size(c.dtype);
  DeviceBytes weights(w.size(), offset);
  const DeviceBytes merged(w.size(), offset);
  weights.upload(w.data());
  const DeviceArray left(a, QF_F32), right(b, QF_F32);
  args.w = weights.data();
  args.a = left.floats();
  args.b = right.floats();
  args.y = c.in_place ? weights.data() : merged.data();
  CHECK_EQ(backend().lora_merge(0, &args), QF_OK);
  const auto y = c.in_place ? weights.download() : merged.download();
  if (y != expected) {
    fail(__FILE__, __LINE__,
         "merge of rank " + std::to_string(c.rank) + " into " + std::to_string(c.out) + " x " + std::to_string(c.in) +
             " differs from the CPU's");
  }
}

}  // namespace

TEST("a merge gives the CPU's bits for every dtype, rank and shape") {
  for (const int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
    for (const int64_t rank : {1, 7, 16, 17, 40}) check_merge({37, 264, rank, dtype});
    check_merge({1, 1, 4, dtype});
    check_merge({7, 257, 8, dtype});
    check_merge({150, 24, 16, dtype});
    check_merge({33, 520, 33, dtype});
    check_merge({33, 264, 16, dtype, false, 1});
  }
}

TEST("a merge in place gives the same") {
  for (const int32_t dtype : {QF_F32, QF_F16, QF_BF16}) {
    check_merge({37, 264, 16, dtype, true});
    check_merge({37, 257, 20, dtype, true});
  }
}

TEST("rank 0 copies, and empty weights are harmless") {
  check_merge({9, 40, 0, QF_BF16});
  const QfLoraMerge empty = {nullptr, nullptr, nullptr, nullptr, 0, 8, 4, 1.0f, QF_F16};
  CHECK_EQ(backend().lora_merge(0, &empty), QF_OK);
}
