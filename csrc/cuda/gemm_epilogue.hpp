// What follows a product where cuBLASLt's own epilogue is not used.
#pragma once

#include "cuda/gemm.hpp"

namespace fastopt {

// C = epilogue(C), in one launch; in two where there are an activation and a gradient. from: null, or what is
// read in C's place, dense.
void finish_on_device(DType dtype, const DeviceGemm& args, CudaStream stream, const void* from = nullptr);

// C = beta C, and 0 where beta is 0: what is left of a product over nothing.
void scale_on_device(DType dtype, const DeviceGemm& args, CudaStream stream);

// A float32 matrix of `columns` columns with `rows` adjacent elements each, `ld` elements apart, rounded to
// bfloat16 or float16 into columns `to_ld` apart.
void round_factor_on_device(DType to_dtype, const void* from, Index rows, Index columns, Index ld, void* to,
                            Index to_ld, CudaStream stream);

}  // namespace fastopt
