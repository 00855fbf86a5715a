// Failure reporting inside the CPU backend: a status plus a message kept for the calling thread
// (QfBackend::last_error).
#pragma once

#include "backend/backend.h"

namespace qformer::cpu {

// Keeps a printf-style message for this thread and returns `status`: `return fail(QF_INVALID_ARGUMENT, "...")`.
QfStatus fail(QfStatus status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The message of this thread's last failure; empty before the first one.
const char* last_error();

}  // namespace qformer::cpu
