// The native side of QFormerError: a code, a message, and the byte counts of a failed allocation.
#pragma once

#include <cstdint>
#include <exception>
#include <string>

namespace qformer {

enum class ErrorCode {
  kInvalidArgument,
  kShape,
  kDtype,
  kDevice,
  kStaleTensor,
  kOutOfMemory,
  kUnsupported,
  kCuda,
  kIo,
  kFormat,
  kInternal,
};

// The spelling used in JavaScript ("INVALID_ARGUMENT").
const char* error_code_name(ErrorCode code);

class Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message) : code(code), message(std::move(message)) {}
  const char* what() const noexcept override { return message.c_str(); }

  ErrorCode code;
  std::string message;
  int64_t requested_bytes = -1;  // kOutOfMemory only
  int64_t free_bytes = -1;
};

// Throws an Error with a printf-style message.
[[noreturn]] void fail(ErrorCode code, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace qformer
