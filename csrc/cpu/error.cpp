// One message buffer per thread.

#include "error.h"

#include <cstdarg>
#include <cstdio>

namespace qformer::cpu {
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

}  // namespace qformer::cpu
