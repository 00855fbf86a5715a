// Runs the native tests. `native_tests [TEXT]` runs the cases whose name contains TEXT; exit code 1 when a check
// failed.
#include <cstdio>
#include <cstring>
#include <exception>

#include "test.h"

namespace qformer::test {

static const char* name_of_case = "";
static int failures_of_case = 0;

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

void fail(const char* file, int line, const std::string& what) {
  // Named at once, in case what has gone wrong ends the program.
  if (++failures_of_case == 1) std::fprintf(stderr, "FAILED %s\n", name_of_case);
  std::fprintf(stderr, "  %s:%d: %s\n", file, line, what.c_str());
}

// An exception that leaves a case fails it and no other.
static bool passes(const Case& test) {
  name_of_case = test.name;
  failures_of_case = 0;
  try {
    test.run();
  } catch (const std::exception& error) {
    fail(test.name, 0, std::string("threw: ") + error.what());
  } catch (...) {
    fail(test.name, 0, "threw something that is not a std::exception");
  }
  return failures_of_case == 0;
}

}  // namespace qformer::test

int main(int argc, char** argv) {
  using namespace qformer::test;
  int passed = 0;
  int failed = 0;
  for (const Case& test : cases()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    (passes(test) ? passed : failed) += 1;
  }
  std::printf("native tests: %d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0 ? 1 : 0;
}
