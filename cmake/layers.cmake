# qformer_layer(NAME SEES): the OBJECT library qformer_NAME of csrc/NAME/**/*.cpp.
#
# Include roots hold nothing but one link to one layer (build/include/core/core -> csrc/core), so `#include "core/tensor.h"`
# resolves exactly in the layers that were given the root of `core`. A layer without sources yet becomes an empty library.

# -ffp-contract=off: the compiler must not fuse a*b+c on its own, or results would differ between instruction sets and
# optimisation levels; kernels ask for fma where they want it. -fno-math-errno lets sqrt and the like inline.
add_library(qformer_flags INTERFACE)
target_compile_options(qformer_flags INTERFACE -Wall -Wextra -ffp-contract=off -fno-math-errno)
if(QFORMER_WERROR)
  target_compile_options(qformer_flags INTERFACE -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 sees an overlap in `"text" + std::string` that cannot happen (GCC bug 105329).
  target_compile_options(qformer_flags INTERFACE -Wno-restrict)
endif()
if(QFORMER_SANITIZE)
  # -O1: instrumented SIMD code takes minutes to optimise further, and the checks are the same. -g1: lines, which is what
  # reports name.
  set(_sanitize -O1 -fsanitize=${QFORMER_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g1)
  target_compile_options(qformer_flags INTERFACE ${_sanitize} -UNDEBUG)
  target_link_options(qformer_flags INTERFACE ${_sanitize})
endif()

function(qformer_layer name sees)
  set(root ${CMAKE_BINARY_DIR}/include/${name})
  file(MAKE_DIRECTORY ${root} ${CMAKE_SOURCE_DIR}/csrc/${name})
  file(CREATE_LINK ${CMAKE_SOURCE_DIR}/csrc/${name} ${root}/${name} SYMBOLIC COPY_ON_ERROR)
  add_library(qformer_${name}_headers INTERFACE)
  target_include_directories(qformer_${name}_headers INTERFACE ${root})

  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/${name}/*.cpp)
  if(NOT sources)
    set(sources ${CMAKE_BINARY_DIR}/empty.cpp)
    file(WRITE ${sources} "")
  endif()
  add_library(qformer_${name} OBJECT ${sources})
  target_link_libraries(qformer_${name} PRIVATE qformer_flags qformer_${name}_headers)
  foreach(layer IN LISTS sees)
    target_link_libraries(qformer_${name} PRIVATE qformer_${layer}_headers)
  endforeach()
endfunction()

set(QFORMER_LAYERS backend core io cpu ops)

# Links every layer below Node-API into `target` and lets its own sources see them all.
function(qformer_link_layers target)
  target_link_libraries(${target} PRIVATE qformer_flags Threads::Threads ${CMAKE_DL_LIBS})
  foreach(layer IN LISTS QFORMER_LAYERS)
    target_link_libraries(${target} PRIVATE qformer_${layer}_headers)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:qformer_${layer}>)
  endforeach()
endfunction()
