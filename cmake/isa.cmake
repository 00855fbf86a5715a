# qformer_isa_options(LAYER): gives the files of csrc/LAYER/isa/ their instruction set by name.
#
# A file belongs to the instruction set that appears as a word of its name: avx2.cpp, linear_avx512.cpp, avx512bf16_gemv.cpp.
# Files of the other architecture are left out of the build. scalar files get no option: they are the baseline.

set(QFORMER_ISA_avx2 -mavx2 -mfma -mf16c)
# Kernels say where they want 512 bits. Loops left to the compiler take 256: the resize then needs a third of the time.
set(QFORMER_ISA_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=256 ${QFORMER_ISA_avx2})
set(QFORMER_ISA_avx512bf16 -mavx512bf16 -mavx512vnni ${QFORMER_ISA_avx512})
set(QFORMER_ISA_amx -mamx-tile -mamx-bf16 ${QFORMER_ISA_avx512bf16})
set(QFORMER_ISA_neon "")

function(qformer_isa_options layer)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(native avx2 avx512 avx512bf16 amx)
    set(foreign neon)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
    set(native neon)
    set(foreign avx2 avx512 avx512bf16 amx)
  else()
    set(native "")
    set(foreign avx2 avx512 avx512bf16 amx neon)
  endif()

  # Where AddressSanitizer also looks for uses after scope, these files take twice as long to compile.
  set(instrumented "")
  if(QFORMER_SANITIZE)
    set(instrumented -fno-sanitize-address-use-after-scope)
  endif()
  get_target_property(sources qformer_${layer} SOURCES)
  foreach(isa IN LISTS native foreign)
    set(files ${sources})
    list(FILTER files INCLUDE REGEX "/isa/([^/]*_)?${isa}(_[^/]*)?\\.cpp$")
    if(NOT files)
      continue()
    endif()
    if(isa IN_LIST foreign)
      set_source_files_properties(${files} PROPERTIES HEADER_FILE_ONLY ON)
    else()
      # Functions begin at a cache line: where they fall by chance, bf16 products of 32 rows are up to 1.19 times as slow.
      # g++ 12 reports the undefined start values inside its own intrinsics headers as uninitialised.
      set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS
        "${QFORMER_ISA_${isa}};-falign-functions=64;$<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>;${instrumented}")
    endif()
  endforeach()
endfunction()
