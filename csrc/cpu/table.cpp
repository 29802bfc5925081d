#include "cpu/table.hpp"

#define FASTOPT_QUOTE_(x) #x
#define FASTOPT_QUOTE(x) FASTOPT_QUOTE_(x)

namespace fastopt {
inline namespace FASTOPT_ISA {

const KernelTable& kernel_table() {
  static const KernelTable table{
      .isa = FASTOPT_QUOTE(FASTOPT_ISA),
      .step = step_table(),
      .reduce = nullptr,
      .math = math_table(),
  };
  return table;
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
