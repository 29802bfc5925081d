// What a driver promises the vectoriser about a loop.
#pragma once

// A loop behind this mark has no dependence between iterations other than exact aliasing of its streams.
#define FO_INDEPENDENT _Pragma("GCC ivdep")

// A loop over the lanes. Unlike FO_INDEPENDENT it also keeps GCC from unrolling the loop completely before
// the vectoriser has seen it.
#define FO_LANES _Pragma("omp simd")
