# The native tests: csrc/test/*.cpp with every layer below Node-API, no Node needed.
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/test/*.cpp)
add_executable(native_tests ${sources})
qformer_link_layers(native_tests)
# Undefined behaviour hides in release code only; assertions are on in the tests.
target_compile_options(native_tests PRIVATE -UNDEBUG)
