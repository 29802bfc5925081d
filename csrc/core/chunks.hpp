// Work cut into chunks that depend on its size alone, so that no result depends on the number of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "core/parallel.hpp"
#include "formulas/monoids.hpp"

namespace fastopt {

inline Index pieces(Index n, Index chunk) { return (n + chunk - 1) / chunk; }
inline Index round_up(Index n, Index unit) { return pieces(n, unit) * unit; }

// Rows of a chunk: a multiple of the 16 that the rows driver handles together.
inline Index row_chunk(Index columns) {
  return (std::max<Index>(kChunk / std::max<Index>(columns, 1), 1) + 15) / 16 * 16;
}

// f(begin, end) over [0, n) in chunks; `elements` tells how much work it is.
template <class F>
void run_chunks(Index n, Index chunk, Index elements, F f) {
  parallel_for(pieces(n, chunk), elements >= kSerialElements,
               [&](Index i) { f(i * chunk, std::min(n, (i + 1) * chunk)); });
}

// Merges parts pairwise, so that rounding errors grow with the logarithm of their number.
template <class M>
double merge_parts(const double* parts, std::size_t n) {
  if (n == 1) return parts[0];
  return M::merge(merge_parts<M>(parts, n / 2), merge_parts<M>(parts + n / 2, n - n / 2));
}

// The same for an f that returns its part of a reduction; `parts` is room for them.
template <class M = Sum<double>, class F>
double merge_chunks(Index n, Index chunk, Index elements, std::vector<double>& parts, F f) {
  parts.assign(std::size_t(pieces(n, chunk)), 0.0);
  run_chunks(n, chunk, elements,
             [&](Index begin, Index end) { parts[std::size_t(begin / chunk)] = f(begin, end); });
  return parts.empty() ? M::identity : merge_parts<M>(parts.data(), parts.size());
}

}  // namespace fastopt
