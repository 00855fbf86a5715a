// What a kernel does with bad data it finds in its inputs: it notes a code in the device's fault word and goes on
// harmlessly. The next download or synchronisation turns the code into QF_INVALID_ARGUMENT.
#pragma once

#include "prims/global.h"

namespace qformer::cuda {

enum FaultCode : int32_t {
  kFaultNone = 0,
  kFaultIdOutOfRange = 1,     // a token id, row index or adapter id outside its table
  kFaultSlotOutOfRange = 2,   // a slot of slot_mapping outside the KV cache
  kFaultBlockOutOfRange = 3,  // an entry of a block table outside the KV cache
  kFaultBadLength = 4,        // cu_seqlens not ascending, or a length that does not fit
  kFaultBadProbability = 5,   // logits of a row without any finite value
};

namespace prims {

// The first code noted stays: threads may race to report, so it is an atomic. A device without a fault word ignores it.
QF_DEVICE void report_fault(Global<int32_t> fault, int32_t code) {
  if (fault) atomic_compare_exchange(fault, 0, static_cast<int32_t>(kFaultNone), code);
}

}  // namespace prims
}  // namespace qformer::cuda
