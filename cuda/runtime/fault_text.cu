// Words for the codes of prims/fault.h, as they follow the op's name in an error message.
#include "prims/fault.h"
#include "runtime/device.h"

namespace qformer::cuda {

const char* fault_text(int32_t code) {
  switch (code) {
    case kFaultIdOutOfRange:
      return "an id is outside its table";
    case kFaultSlotOutOfRange:
      return "a slot is outside the KV cache";
    case kFaultBlockOutOfRange:
      return "an entry of the block table is outside the KV cache";
    case kFaultBadLength:
      return "sequence lengths do not fit the tensors";
    case kFaultBadProbability:
      return "a row of logits has no finite value";
    default:
      return "a kernel reported bad input";
  }
}

}  // namespace qformer::cuda
