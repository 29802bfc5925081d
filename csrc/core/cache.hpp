// How large an output has to be for its stores to go past the caches.
#pragma once

#include "core/array.hpp"

namespace fastopt {

Index stream_bytes();
void set_stream_bytes(Index bytes);

}  // namespace fastopt
