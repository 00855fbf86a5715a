#include "core/error.h"

#include <cstdarg>
#include <cstdio>

namespace qformer {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case ErrorCode::kShape:
      return "SHAPE";
    case ErrorCode::kDtype:
      return "DTYPE";
    case ErrorCode::kDevice:
      return "DEVICE";
    case ErrorCode::kStaleTensor:
      return "STALE_TENSOR";
    case ErrorCode::kOutOfMemory:
      return "OUT_OF_MEMORY";
    case ErrorCode::kUnsupported:
      return "UNSUPPORTED";
    case ErrorCode::kCuda:
      return "CUDA";
    case ErrorCode::kIo:
      return "IO";
    case ErrorCode::kFormat:
      return "FORMAT";
    case ErrorCode::kInternal:
      return "INTERNAL";
  }
  return "INTERNAL";
}

void fail(ErrorCode code, const char* format, ...) {
  char message[512];
  va_list args;
  va_start(args, format);
  std::vsnprintf(message, sizeof message, format, args);
  va_end(args);
  throw Error(code, message);
}

}  // namespace qformer
