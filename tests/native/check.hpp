// CHECK: prints what does not hold and goes on; the program's exit status is for `failures`.
#pragma once

#include <stdio.h>

#include <atomic>

namespace fastopt::test {

inline std::atomic<int> failures{0};

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      if (fastopt::test::failures++ < 50) /* the first ones say enough */ \
        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
    }                                                                     \
  } while (0)

}  // namespace fastopt::test
