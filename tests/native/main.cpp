// Tests of the native core without Python: `native_tests PART`. Prints what fails; exit status 1 then.
#include "core/parallel.hpp"
#include "native.hpp"

namespace fastopt::test {

ChangingThreads::ChangingThreads()
    : before_(num_threads()), thread_([this] {
        for (int n = 1; !done_; n = n % 5 + 1) {
          set_num_threads(n);
          usleep(50);
        }
      }) {}

ChangingThreads::~ChangingThreads() {
  done_ = true;
  thread_.join();
  set_num_threads(before_);
}

}  // namespace fastopt::test

int main(int argc, char** argv) {
  using namespace fastopt::test;
  const struct {
    const char* name;
    void (*run)();
  } parts[] = {{"pool", test_pool},
               {"fork", test_fork},
               {"step", test_step},
               {"elementwise", test_elementwise},
               {"reduce", test_reduce},
               {"rows", test_rows},
               {"batch_norm", test_batch_norm},
               {"gemm", test_gemm},
               {"program", test_program},
               {"strips", test_strips}};
  for (const auto& part : parts)
    if (argc == 2 && std::strcmp(argv[1], part.name) == 0) {
      part.run();
      return failures != 0;
    }
  fprintf(stderr, "usage: native_tests PART, one of");
  for (const auto& part : parts) fprintf(stderr, " %s", part.name);
  return fputs("\n", stderr), 2;
}
