// Matrix products on a device. cuBLASLt multiplies; what follows a product is done in its epilogue where that
// means exactly the same, else in one launch of our own.
#pragma once

#include "core/dispatch.hpp"
#include "cuda/kernels.hpp"

namespace fastopt {

// What float32 factors are rounded to before they are multiplied. Sums stay float32.
enum class Precision : std::uint8_t { ieee, tf32, bf16, f16 };

// C = epilogue(alpha A B + beta C). One stride of each operand is 1, C is dense; pointers are to device
// memory but epilogue.params. `bf16` and `packed_a` are the CPU's.
struct DeviceGemm : GemmArgs {
  Precision precision = Precision::ieee;  // of float32 arrays
  void* c_sums = nullptr;                 // receives the sums of C's columns, n values
  void* a_sums = nullptr;  // receives the sums of A's rows, m values; A's columns are dense then
  double alpha = 1.0;
  // Null, or where alpha and beta lie in device memory, of the arrays' dtype. For float32 and float64, k > 0,
  // and without an epilogue.
  const void *alpha_at = nullptr, *beta_at = nullptr;
  const std::uint64_t* mask_offset = nullptr;  // null, or what is added to epilogue.offset
};

// scratch: gemm_scratch_bytes of device memory, of which the first 64 bytes are zero and are left so. The
// first product of a kind waits until it has timed several ways to compute it, unless the stream is being
// captured or FASTOPT_CUDA_AUTOTUNE is 0.
void gemm_on_device(DType dtype, const DeviceGemm& args, void* scratch, CudaStream stream);
Index gemm_scratch_bytes(DType dtype, const DeviceGemm& args);

}  // namespace fastopt
