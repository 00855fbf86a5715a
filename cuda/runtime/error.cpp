// One message buffer per thread, and the meaning of CUDA's error codes.
#include "runtime/error.h"

#include <cstdarg>
#include <cstdio>

#include "runtime/device.h"

namespace qformer::cuda {
namespace {

thread_local char message[512] = "";

}  // namespace

QfStatus fail(QfStatus status, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof(message), format, args);
  va_end(args);
  return status;
}

const char* last_error() { return message; }

bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContextIsDestroyed:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

QfStatus check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return QF_OK;
  cudaGetLastError();  // a failed call also leaves its code for the next one that asks
  const char* reason = cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) return fail(QF_OUT_OF_MEMORY, "%s: %s", what, reason);
  if (!is_sticky(error)) return fail(QF_INTERNAL, "%s: %s", what, reason);
  const QfStatus status = fail(QF_DEVICE_FAULT, "%s: %s", what, reason);
  poison_current_device(message);
  return status;
}

}  // namespace qformer::cuda
