# One libFuzzer program per csrc/fuzz/fuzz_*.cpp, linked with every layer below Node-API (clang only).
#
# All layers are instrumented for coverage; the fuzzers bring LLVMFuzzerTestOneInput and libFuzzer its main.
if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "QFORMER_FUZZ needs clang: cmake -DCMAKE_CXX_COMPILER=clang++-14 ...")
endif()
set(_fuzz -fsanitize=fuzzer-no-link,address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=all -g)
target_compile_options(qformer_flags INTERFACE ${_fuzz} -UNDEBUG -Wno-error)
target_link_options(qformer_flags INTERFACE ${_fuzz})

file(GLOB fuzzers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/fuzz/fuzz_*.cpp)
foreach(source IN LISTS fuzzers)
  get_filename_component(name ${source} NAME_WE)
  add_executable(${name} ${source})
  qformer_link_layers(${name})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endforeach()
