# libqformer_emulated.so: every source of cuda/ as C++ over the SIMT emulator, so that the kernels run on any machine.
# libqformer_unchecked.so: the same without the emulator's checks, for long runs.
#
# It is built for the machine it runs on: the emulator's arithmetic is a good deal faster with vector instructions, and the
# compiler may not fuse a*b+c on its own, so they do not change a result. QFORMER_EMULATED_PORTABLE leaves them out.
# The native tests test/cuda/*_test.cpp are one program each, so that a broken one does not hide the others.
option(QFORMER_EMULATED_PORTABLE "Use no instructions beyond the baseline of the architecture" OFF)
set(QFORMER_SANITIZE "" CACHE STRING "Sanitizers, for example address,undefined")

file(GLOB emulator_sources CONFIGURE_DEPENDS ${QFORMER_ROOT}/test/emulator/*.cpp)
list(FILTER emulator_sources EXCLUDE REGEX "_test\\.cpp$")
set_source_files_properties(${kernel_sources} PROPERTIES LANGUAGE CXX)

add_library(emulated_flags INTERFACE)
target_compile_definitions(emulated_flags INTERFACE QF_EMULATED=1)
target_include_directories(emulated_flags INTERFACE ${QFORMER_ROOT}/test/emulator)
target_compile_options(emulated_flags INTERFACE -O2 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wno-unknown-pragmas)
if(QFORMER_WERROR)
  target_compile_options(emulated_flags INTERFACE -Werror)
endif()
if(QFORMER_SANITIZE)
  target_compile_options(emulated_flags INTERFACE -fsanitize=${QFORMER_SANITIZE} -fno-omit-frame-pointer -g)
  target_link_options(emulated_flags INTERFACE -fsanitize=${QFORMER_SANITIZE})
endif()
if(NOT QFORMER_EMULATED_PORTABLE AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND EXISTS /proc/cpuinfo)
  file(STRINGS /proc/cpuinfo cpu_flags REGEX "^flags" LIMIT_COUNT 1)
  if(cpu_flags MATCHES " avx2 " AND cpu_flags MATCHES " fma " AND cpu_flags MATCHES " f16c ")
    target_compile_options(emulated_flags INTERFACE -mavx2 -mfma -mf16c)
  endif()
endif()

add_library(emulated_objects OBJECT ${kernel_sources} ${host_sources} ${emulator_sources})
target_link_libraries(emulated_objects PRIVATE emulated_flags)

add_library(qformer_emulated SHARED $<TARGET_OBJECTS:emulated_objects>)
target_link_libraries(qformer_emulated PRIVATE emulated_flags Threads::Threads)
# What judges accesses is left out.
set(unchecked_sources ${emulator_sources})
list(FILTER unchecked_sources EXCLUDE REGEX "/(copy_async|shadow|shared_memory)\\.cpp$")
add_library(qformer_unchecked SHARED EXCLUDE_FROM_ALL ${kernel_sources} ${host_sources} ${unchecked_sources})
target_link_libraries(qformer_unchecked PRIVATE emulated_flags Threads::Threads)
target_compile_definitions(qformer_unchecked PRIVATE QF_EMULATOR_UNCHECKED=1)

# Parsing these takes a third of the time that most sources take.
foreach(target emulated_objects qformer_unchecked)
  target_precompile_headers(${target} PRIVATE
    <algorithm> <cmath> <cstdio> <cstring> <functional> <map> <memory> <mutex> <string> <unordered_map> <vector>)
endforeach()

foreach(library qformer_emulated qformer_unchecked)
  # Sanitizers may leave their runtime to the executable.
  target_link_options(${library} PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/exports.map
    $<$<NOT:$<BOOL:${QFORMER_SANITIZE}>>:-Wl,-z,defs>)
  set_target_properties(${library} PROPERTIES LINK_DEPENDS ${CMAKE_SOURCE_DIR}/exports.map LINKER_LANGUAGE CXX)
endforeach()

# The CPU backend, for tests of ops that promise its very bits.
set(tests_against_cpu elementwise_test image_test lora_merge_test quant_linear_test sampling_test)
file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cpu_include)
file(CREATE_LINK ${QFORMER_ROOT}/csrc/cpu ${CMAKE_BINARY_DIR}/cpu_include/cpu SYMBOLIC COPY_ON_ERROR)
file(GLOB_RECURSE cpu_sources CONFIGURE_DEPENDS ${QFORMER_ROOT}/csrc/cpu/*.cpp)
add_library(qformer_cpu OBJECT EXCLUDE_FROM_ALL ${cpu_sources})
set_target_properties(qformer_cpu PROPERTIES CXX_STANDARD 20)
# -O1 compiles in half the time, and the bits are the same.
target_compile_options(qformer_cpu PRIVATE -O1 -ffp-contract=off -fno-math-errno)
include(${QFORMER_ROOT}/cmake/isa.cmake)
qformer_isa_options(cpu)

# The tests link the objects, not the library: they may look inside.
add_library(native_test_main OBJECT ${QFORMER_ROOT}/csrc/test/main.cpp)
set_target_properties(native_test_main PROPERTIES CXX_STANDARD 20)
file(GLOB test_sources CONFIGURE_DEPENDS ${QFORMER_ROOT}/test/cuda/*_test.cpp ${QFORMER_ROOT}/test/emulator/*_test.cpp)
add_custom_target(native_tests)
foreach(source IN LISTS test_sources)
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} EXCLUDE_FROM_ALL ${source} $<TARGET_OBJECTS:emulated_objects> $<TARGET_OBJECTS:native_test_main>)
  target_include_directories(${name} PRIVATE ${QFORMER_ROOT}/csrc/test ${QFORMER_ROOT}/test/cuda)
  target_link_libraries(${name} PRIVATE emulated_flags Threads::Threads)
  set_target_properties(${name} PROPERTIES CXX_STANDARD 20 LINKER_LANGUAGE CXX)
  add_dependencies(native_tests ${name})
  if(name IN_LIST tests_against_cpu)
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:qformer_cpu>)
    target_include_directories(${name} PRIVATE ${CMAKE_BINARY_DIR}/cpu_include)
  endif()
endforeach()
