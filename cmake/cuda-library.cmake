# libqformer_cuda<major>.so: the kernels for every architecture that the toolkit covers, the runtime around them and a
# static cudart. libstdc++ and libgcc stay dynamic, as in the addon: linking them in raises the glibc floor.
enable_language(CUDA)
string(REGEX MATCH "^[0-9]+" cuda_major ${CMAKE_CUDA_COMPILER_VERSION})

option(QFORMER_PTXAS_VERBOSE "Print registers and spills of every kernel" OFF)
set(QFORMER_SAMPLE_ARCHITECTURES "" CACHE STRING "Compute capabilities that decode.cu is compiled for besides")
option(QFORMER_KEEP_PTX "Leave the PTX of every kernel source in the folder ptx" OFF)
if(NOT QFORMER_CUDA_ARCHITECTURES)
  set(QFORMER_CUDA_ARCHITECTURES 75 80 86 89 90)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND QFORMER_CUDA_ARCHITECTURES 100 120)
  endif()
endif()
# Machine code for each, and PTX of the newest for those that come after. The PTX of 8.0, 8.6 and 8.9 differs in the name of
# its target alone, so these share a run of the front end, which more than a third of the time goes to.
set(generated "")
set(ampere ${QFORMER_CUDA_ARCHITECTURES})
list(FILTER ampere INCLUDE REGEX "^8[0-9]$")
foreach(architecture IN LISTS QFORMER_CUDA_ARCHITECTURES)
  if(NOT architecture IN_LIST ampere)
    list(APPEND generated --generate-code=arch=compute_${architecture},code=[sm_${architecture}])
  endif()
endforeach()
if(ampere)
  list(TRANSFORM ampere PREPEND "sm_")
  list(JOIN ampere "," codes)
  list(GET ampere 0 oldest)
  string(REPLACE "sm_" "compute_" oldest ${oldest})
  list(APPEND generated --generate-code=arch=${oldest},code=[${codes}])
endif()
foreach(architecture IN LISTS QFORMER_SAMPLE_ARCHITECTURES)
  set_property(SOURCE ${CMAKE_SOURCE_DIR}/decode.cu APPEND PROPERTY
    COMPILE_OPTIONS --generate-code=arch=compute_${architecture},code=[sm_${architecture}])
endforeach()
list(GET QFORMER_CUDA_ARCHITECTURES -1 newest)
list(APPEND generated --generate-code=arch=compute_${newest},code=[compute_${newest}])
if(QFORMER_KEEP_PTX)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/ptx)
  list(APPEND generated --keep --keep-dir=${CMAKE_BINARY_DIR}/ptx)
endif()

# The host sources of the kernel families share headers with kernels, so they need the CUDA compiler too; runtime/ does not.
set(family_sources ${host_sources})
list(FILTER family_sources EXCLUDE REGEX "/cuda/runtime/")
set_source_files_properties(${family_sources} PROPERTIES LANGUAGE CUDA)

set(name qformer_cuda${cuda_major})
add_library(${name} SHARED ${kernel_sources} ${host_sources})
set_target_properties(${name} PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
  CUDA_ARCHITECTURES OFF CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden
  LINK_DEPENDS ${CMAKE_SOURCE_DIR}/exports.map)
target_compile_definitions(${name} PRIVATE NDEBUG)
target_compile_options(${name} PRIVATE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra>
  "$<$<COMPILE_LANGUAGE:CUDA>:${generated};--expt-relaxed-constexpr;-Xcompiler=-Wall>"
  $<$<AND:$<BOOL:${QFORMER_PTXAS_VERBOSE}>,$<COMPILE_LANGUAGE:CUDA>>:-Xptxas=-v>
  $<$<AND:$<BOOL:${QFORMER_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
target_include_directories(${name} SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS} rt)
target_link_options(${name} PRIVATE
  -Wl,--version-script=${CMAKE_SOURCE_DIR}/exports.map -Wl,--exclude-libs=ALL -Wl,-z,relro,-z,now -Wl,--gc-sections -Wl,-z,defs)
