# libqformer_cuda<major>.so beside the addon, one per CUDA toolkit in CUDA_TOOLKITS ("/usr/local/cuda;/opt/cuda-12.4").
#
# A build tree has one CUDA compiler, so each toolkit gets a tree of its own; cuda/CMakeLists.txt is the project.
include(ExternalProject)

foreach(toolkit IN LISTS CUDA_TOOLKITS)
  if(NOT EXISTS ${toolkit}/bin/nvcc)
    message(FATAL_ERROR "CUDA_TOOLKITS: there is no ${toolkit}/bin/nvcc")
  endif()
  string(MAKE_C_IDENTIFIER "cuda${toolkit}" name)
  ExternalProject_Add(${name}
    SOURCE_DIR ${CMAKE_SOURCE_DIR}/cuda
    BINARY_DIR ${CMAKE_BINARY_DIR}/${name}
    CMAKE_ARGS
      -DCMAKE_CUDA_COMPILER=${toolkit}/bin/nvcc
      -DCMAKE_BUILD_TYPE=Release
      -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${CMAKE_LIBRARY_OUTPUT_DIRECTORY}
      -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
    BUILD_ALWAYS ON
    USES_TERMINAL_BUILD ON
    INSTALL_COMMAND "")
endforeach()
