#include <algorithm>

#include "core/plan.hpp"

namespace fastopt {

std::vector<PlanChunk> cut(const std::vector<PlanTensor>& tensors, Index chunk) {
  std::vector<PlanChunk> chunks;
  for (std::size_t t = 0; t < tensors.size(); ++t)
    for (Index begin = 0; begin < tensors[t].n; begin += chunk)
      chunks.push_back({std::int32_t(t), begin, std::min(begin + chunk, tensors[t].n)});
  return chunks;
}

}  // namespace fastopt
