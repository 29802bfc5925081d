#include "core/cache.hpp"

#include <atomic>

namespace fastopt {
namespace {

// As large as the last-level cache that the cores of most machines share: what is written first has left it
// before anyone reads it. Systems tell the sum over all such caches, or nothing.
std::atomic<Index> limit{32 << 20};

}  // namespace

Index stream_bytes() { return limit.load(std::memory_order_relaxed); }
void set_stream_bytes(Index bytes) { limit.store(bytes, std::memory_order_relaxed); }

}  // namespace fastopt
