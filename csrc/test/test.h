// A small test harness: named cases that register themselves, checks that report and go on, one exit code.
//
//   TEST("a view shares the storage of its source") { CHECK(view.data() == source.data()); }
//
// Its own so that the native tests need nothing but a compiler.
#pragma once

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

namespace qformer::test {

struct Case {
  const char* name;
  void (*run)();
};

// All cases of the program, in link order.
std::vector<Case>& cases();

// Notes a failed check of the running case.
void fail(const char* file, int line, const std::string& what);

struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

template <class A, class B>
void check_equal(const A& actual, const B& expected, const char* text, const char* file, int line) {
  if (actual == expected) return;
  std::ostringstream out;
  out << text << ": got " << actual << ", expected " << expected;
  fail(file, line, out.str());
}

// NaN fails: the comparison is written so that it cannot pass.
inline void check_near(double actual, double expected, double tolerance, const char* text, const char* file, int line) {
  if (std::abs(actual - expected) <= tolerance) return;
  std::ostringstream out;
  out.precision(9);
  out << text << ": got " << actual << ", expected " << expected << " within " << tolerance;
  fail(file, line, out.str());
}

}  // namespace qformer::test

#define QF_TEST_JOIN2(a, b) a##b
#define QF_TEST_JOIN(a, b) QF_TEST_JOIN2(a, b)
#define QF_TEST_NAMED(name, id)                                                                                   \
  static void QF_TEST_JOIN(test_case_, id)();                                                                     \
  static const ::qformer::test::Registration QF_TEST_JOIN(test_registration_, id)(name,                           \
                                                                                  &QF_TEST_JOIN(test_case_, id)); \
  static void QF_TEST_JOIN(test_case_, id)()

// TEST("sentence") { ... }
#define TEST(name) QF_TEST_NAMED(name, __COUNTER__)

#define CHECK(condition) ((condition) ? (void)0 : ::qformer::test::fail(__FILE__, __LINE__, #condition))
#define CHECK_EQ(actual, expected) ::qformer::test::check_equal((actual), (expected), #actual, __FILE__, __LINE__)
#define CHECK_NEAR(actual, expected, tolerance) \
  ::qformer::test::check_near((actual), (expected), (tolerance), #actual, __FILE__, __LINE__)
// The statement must throw `type`.
#define CHECK_THROWS(statement, type)                                                        \
  do {                                                                                       \
    bool thrown = false;                                                                     \
    try {                                                                                    \
      statement;                                                                             \
    } catch (const type&) {                                                                  \
      thrown = true;                                                                         \
    }                                                                                        \
    if (!thrown) ::qformer::test::fail(__FILE__, __LINE__, #statement " must throw " #type); \
  } while (0)
