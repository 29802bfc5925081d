// The CUDA kernels' code, compiled as C++ and run on the host: `host_cuda_tests PART`. Prints what fails;
// exit status 1 then.
#include "parts.hpp"

#include "native.hpp"

int main(int argc, char** argv) {
  using namespace fastopt;
  using namespace fastopt::test;
  const struct {
    const char* name;
    void (*run)();
  } parts[] = {{"cuda_fibers", test_cuda_fibers},
               {"cuda_runtime", test_cuda_runtime},
               {"cuda_step", test_cuda_step},
               {"cuda_step_packed", test_cuda_step_packed},
               {"cuda_elementwise", test_cuda_elementwise},
               {"cuda_gemm", test_cuda_gemm},
               {"cuda_program", test_cuda_program},
               {"cuda_reduce", test_cuda_reduce},
               {"cuda_rows", test_cuda_rows},
               {"cuda_batch_norm", test_cuda_batch_norm},
               {"cuda_cross_entropy", test_cuda_cross_entropy},
               {"cuda_losses", test_cuda_losses},
               {"cuda_arrange", test_cuda_arrange}};
  // A device always has fused multiply-adds. Levels without give other bits.
  CHECK(set_isa(available_isas()[0]));
  if (std::strcmp(kernels().isa, "v2") == 0) return puts("skipped: this CPU has no fused multiply-add"), 0;
  for (const auto& part : parts)
    if (argc == 2 && std::strcmp(argv[1], part.name) == 0) {
      part.run();
      return failures != 0;
    }
  fprintf(stderr, "usage: host_cuda_tests PART, one of");
  for (const auto& part : parts) fprintf(stderr, " %s", part.name);
  return fputs("\n", stderr), 2;
}
