# The drivers of csrc/cuda by nvcc, and the Python module over them.

set(default AUTO)
if(FASTOPT_SANITIZE)
  set(default OFF) # sanitizers see the same sources as C++, in tests/host_cuda
endif()
set(FASTOPT_CUDA ${default} CACHE STRING "build the CUDA kernels: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE FASTOPT_CUDA PROPERTY STRINGS AUTO ON OFF)
# Code for Hopper, and what a driver translates for any other GPU from Turing on.
set(FASTOPT_CUDA_ARCHS "75-virtual;90a-real" CACHE STRING "CUDA architectures, as in CMAKE_CUDA_ARCHITECTURES")

set(FASTOPT_CUDA_SOURCES csrc/cuda/arrange.cu csrc/cuda/attempts.cu csrc/cuda/batch_norm.cu csrc/cuda/capture.cu csrc/cuda/cross_entropy.cu
    csrc/cuda/elementwise.cu csrc/cuda/gemm.cu csrc/cuda/gemm_epilogue.cu csrc/cuda/losses.cu csrc/cuda/measure.cu
    csrc/cuda/progress.cu csrc/cuda/queue.cu csrc/cuda/reduce.cu csrc/cuda/rows.cu csrc/cuda/runtime.cu
    csrc/cuda/step.cu csrc/cuda/step_packed.cu)
# Host code of theirs without CUDA's names.
set(FASTOPT_CUDA_HOST_SOURCES csrc/cuda/cublaslt.cpp csrc/cuda/gemm_plan.cpp csrc/cuda/program.cpp
    csrc/cuda/program_run.cpp)

# What the module needs besides: its bindings, and what it shares with _core.
set(FASTOPT_CUDA_BINDINGS csrc/bindings/arrays.cpp csrc/bindings/cuda.cpp csrc/bindings/cuda_kernels.cpp
    csrc/bindings/cuda_linear.cpp csrc/bindings/cuda_program.cpp csrc/bindings/cuda_step.cpp
    csrc/bindings/device_arrays.cpp csrc/core/cut.cpp csrc/core/program_parts.cpp)

# The bits are the CPU's: no contraction (fma is spelt out in math.hpp), IEEE square root and division, and
# denormals are kept. Code is packed as small as it gets: a wheel has a limit.
set(FASTOPT_CUDA_FLAGS -fmad=false -prec-div=true -prec-sqrt=true -ftz=false --compress-mode=size)

if(FASTOPT_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES ${FASTOPT_CUDA_ARCHS})
    enable_language(CUDA)
    # Of nvcc an -O is the host compiler's; kernels are optimised without it.
    string(REPLACE "-O3" "-O1" CMAKE_CUDA_FLAGS_RELEASE "${CMAKE_CUDA_FLAGS_RELEASE}")
    # What nvcc generates for the host is not pedantic; -Werror is its own option.
    set(host_flags ${FASTOPT_WARNINGS} -fno-lto)
    list(REMOVE_ITEM host_flags -Wpedantic -Werror)
    list(JOIN host_flags "," host_flags)
    add_library(cuda_kernels OBJECT ${FASTOPT_CUDA_SOURCES} ${FASTOPT_CUDA_HOST_SOURCES})
    set_source_files_properties(${FASTOPT_CUDA_SOURCES} PROPERTIES LANGUAGE CUDA)
    target_include_directories(cuda_kernels PRIVATE csrc)
    target_compile_definitions(cuda_kernels PRIVATE FASTOPT_ISA=cuda)
    target_compile_options(
      cuda_kernels
      PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${FASTOPT_CUDA_FLAGS};-Xcompiler=${host_flags}>
              $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${FASTOPT_WERROR}>>:-Werror=all-warnings>
              $<$<COMPILE_LANGUAGE:CXX>:${FASTOPT_WARNINGS};-fno-lto>
    )
    set_target_properties(
      cuda_kernels PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 20 CUDA_VISIBILITY_PRESET hidden
    )
  elseif(NOT FASTOPT_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "FASTOPT_CUDA is ${FASTOPT_CUDA}, and there is no nvcc. Put it on the PATH, set CUDACXX, or "
                        "configure with -DFASTOPT_CUDA=OFF.")
  endif()
endif()

# The module _cuda, where there is nvcc. CUDA's runtime is linked statically; the driver is looked for when the module is
# first used, so it can be imported anywhere.
function(fastopt_add_cuda_module)
  if(NOT TARGET cuda_kernels)
    return()
  endif()
  find_package(CUDAToolkit REQUIRED)
  python_add_library(_cuda MODULE WITH_SOABI ${FASTOPT_CUDA_BINDINGS})
  target_include_directories(_cuda PRIVATE csrc)
  list(JOIN FASTOPT_CUDA_ARCHS "," architectures)
  target_compile_definitions(_cuda PRIVATE FASTOPT_ISA=host FASTOPT_CUDA_MODULE=_cuda FASTOPT_CUDA_ARCHS="${architectures}")
  target_compile_options(_cuda PRIVATE ${FASTOPT_WARNINGS} -fno-lto -O2)
  target_link_libraries(_cuda PRIVATE cuda_kernels CUDA::cudart_static pybind11::headers Threads::Threads
                                       ${CMAKE_DL_LIBS})
  set_target_properties(_cuda PROPERTIES LINKER_LANGUAGE CXX)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_link_options(_cuda PRIVATE -s -Wl,--gc-sections)
  endif()
  if(FASTOPT_OUTPUT_DIR)
    set_target_properties(_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${FASTOPT_OUTPUT_DIR})
  endif()
  install(TARGETS _cuda DESTINATION fastopt)
endfunction()
