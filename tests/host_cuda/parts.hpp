// The parts of the program, one for each argument that it takes.
#pragma once

namespace fastopt::test {

void test_cuda_fibers();
void test_cuda_runtime();
void test_cuda_step();
void test_cuda_step_packed();
void test_cuda_elementwise();
void test_cuda_gemm();
void test_cuda_program();
void test_cuda_reduce();
void test_cuda_rows();
void test_cuda_batch_norm();
void test_cuda_cross_entropy();
void test_cuda_losses();
void test_cuda_arrange();

}  // namespace fastopt::test
