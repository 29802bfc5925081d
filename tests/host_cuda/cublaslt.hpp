// What tests may ask of the cuBLASLt that host_cuda_tests has instead of NVIDIA's: a plain product in double
// that takes what the real one takes and refuses what it refuses.
#pragma once

#include <vector>

#include "cuda/cublaslt.hpp"

namespace host_cuda {

struct CublasLt {
  bool refuse_epilogues = false;                 // all but `none`
  bool refuse_products = false;                  // all
  int failing_algo = -1;                         // fails when it runs, though it was offered
  std::vector<fastopt::lt::Epilogue> epilogues;  // of the products that have run
  float costs[2][3] = {{1, 1, 1}, {2, 2, 2}};  // milliseconds of an algorithm [with epilogue `none`][number]
  std::vector<int> algos;                      // likewise
  int scaled_on_device = 0;                    // of those products, how many read alpha and beta there
};
extern CublasLt cublaslt;

inline constexpr int kLtAlgos = 3;  // offered for each product

}  // namespace host_cuda
