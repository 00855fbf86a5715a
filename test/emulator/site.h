// A place in kernel source, passed as a default argument so that a report can name the line that called a primitive.
#pragma once

#include <cstdint>

namespace qformer::emulator {

#ifdef QF_EMULATOR_UNCHECKED

// Nothing is reported, so nothing is remembered.
struct Site {
  static constexpr const char* file = "?";
  static constexpr int line = 0;
  constexpr Site(const char* = nullptr, int = 0) {}
  bool operator==(const Site&) const { return true; }
};

#else

struct Site {
  const char* file;
  int line;
  constexpr Site(const char* file = __builtin_FILE(), int line = __builtin_LINE()) : file(file), line(line) {}
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};

#endif

// An element index that remembers where it was written: gives p[i] a site, which operator[] could not take otherwise.
struct Index {
  int64_t value;
  Site site;
  constexpr Index(int64_t value, Site site = Site()) : value(value), site(site) {}
};

}  // namespace qformer::emulator
