// The entry points of the CPU backend's op families, one function per op of QF_OPS, as cpu_backend.cpp puts them in the
// table. An entry may throw std::bad_alloc: the table's guard turns it into QF_OUT_OF_MEMORY.
#pragma once

#include "backend/backend.h"

namespace qformer::cpu {

#define QF_CPU_ENTRY(name, Args) QfStatus name(int32_t device, const Args* args);
QF_OPS(QF_CPU_ENTRY)
#undef QF_CPU_ENTRY

}  // namespace qformer::cpu
