#include "core/column_sums.hpp"

#include <algorithm>
#include <vector>

#include "core/chunks.hpp"
#include "core/dispatch.hpp"

namespace fastopt {
namespace {

template <class T>
void store(void* out, Index i, double value, bool add) {
  T& place = static_cast<T*>(out)[i];
  place = add ? place + T(value) : T(value);
}

}  // namespace

// A task sums some rows of some columns; the sums of the row blocks are then added in order.
void column_sums(DType dtype, const void* x, Index rows, Index columns, void* out, bool add) {
  constexpr Index kColumns = 512;
  if (columns == 0) return;
  const Index width = std::min(columns, kColumns), tiles = pieces(columns, width);
  const Index height = std::max<Index>(2 * kChunk / width, 1),
              blocks = std::max<Index>(pieces(rows, height), 1);
  std::vector<double> sums(std::size_t(blocks * columns));
  const auto kernel = kernels().sums[int(dtype)].column_sums;
  parallel_for(blocks * tiles, rows * columns >= kSerialElements, [&](Index task) {
    const Index block = task / tiles, first = task % tiles * width;
    const ColumnSumArgs args{x, columns, first, std::min(columns, first + width),
                             sums.data() + block * columns};
    kernel(args, block * height, std::min(rows, (block + 1) * height));
  });
  const auto put = dtype == DType::f32 ? &store<float> : &store<double>;
  for (Index c = 0; c < columns; ++c) {
    double total = 0.0;
    for (Index block = 0; block < blocks; ++block) total += sums[std::size_t(block * columns + c)];
    put(out, c, total, add);
  }
}

}  // namespace fastopt
