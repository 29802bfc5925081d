# One source, several instruction sets: every file of csrc/cpu is compiled once per level, inside the
# namespace of that level (FASTOPT_ISA), and reached only through the level's KernelTable.

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(FASTOPT_ISAS v2 v3 v4)
  set(FASTOPT_FLAGS_v2 -march=x86-64-v2)
  set(FASTOPT_FLAGS_v3 -march=x86-64-v3)
  set(FASTOPT_FLAGS_v4 -march=x86-64-v4)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(FASTOPT_ISAS neon)
  set(FASTOPT_FLAGS_neon "")
else()
  message(FATAL_ERROR "fastopt has no CPU level for ${CMAKE_SYSTEM_PROCESSOR}")
endif()

# IEEE values are kept: no -ffast-math, no contraction (fma is spelt out in math.hpp). The two -fno- flags
# give up errno and exception flags only; without them GCC vectorises neither sqrt nor selects. Kernels throw
# nothing and call nothing that does: tables for unwinding would be a fortieth of the module.
set(FASTOPT_CPU_FLAGS -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -fopenmp-simd -fno-lto -fno-exceptions
    -fno-asynchronous-unwind-tables)

function(fastopt_add_isa_objects target)
  foreach(isa IN LISTS FASTOPT_ISAS)
    add_library(${target}_${isa} OBJECT ${ARGN})
    target_include_directories(${target}_${isa} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
    target_compile_definitions(${target}_${isa} PRIVATE FASTOPT_ISA=${isa})
    target_compile_options(${target}_${isa} PRIVATE ${FASTOPT_CPU_FLAGS} ${FASTOPT_FLAGS_${isa}} ${FASTOPT_WARNINGS})
    set_target_properties(${target}_${isa} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  endforeach()
endfunction()
