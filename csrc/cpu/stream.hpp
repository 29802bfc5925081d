// Stores that go past the caches, for large arrays that are only written: a line written as a whole need not
// be read first, which is a third of the traffic of y = f(x), and what is in the caches stays there.
#pragma once

#include <cstddef>

#include "core/array.hpp"
#include "math.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastopt {
inline namespace FASTOPT_ISA {

// Elements of a 64-byte cache line.
template <class T>
inline constexpr Index kLine = 64 / Index(sizeof(T));

// Elements from y to the next line.
template <class T>
FO_HD Index to_line(const T* y) {
  return Index(-reinterpret_cast<std::uintptr_t>(y) % 64 / sizeof(T));
}

// One line to a 64-byte aligned place.
FO_HD void stream_line(const void* line, void* to) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(line));
#elif defined(__AVX__)
  for (int k = 0; k < 2; ++k)
    _mm256_stream_si256(static_cast<__m256i*>(to) + k,
                        _mm256_loadu_si256(static_cast<const __m256i*>(line) + k));
#elif defined(__x86_64__)
  for (int k = 0; k < 4; ++k)
    _mm_stream_si128(static_cast<__m128i*>(to) + k, _mm_loadu_si128(static_cast<const __m128i*>(line) + k));
#else
  __builtin_memcpy(to, line, 64);
#endif
}

// Elements to take next of the n from y on: those before the next line, or whole lines, or the rest.
template <class T>
FO_HD Index stream_run(const T* y, Index n, bool* lines) {
  const Index head = to_line(y);
  *lines = head == 0 && n >= kLine<T>;
  if (*lines) return n / kLine<T> * kLine<T>;
  return head && head < n ? head : n;
}

template <class T>
FO_HD void stream_copy(const T* from, T* to, Index n) {
  for (Index i = 0; i < n;) {
    bool lines;
    const Index run = stream_run(to + i, n - i, &lines);
    if (lines) {
      for (Index k = i; k < i + run; k += kLine<T>) stream_line(from + k, to + k);
    } else {
      __builtin_memcpy(to + i, from + i, std::size_t(run) * sizeof(T));
    }
    i += run;
  }
}

FO_HD Index at_most(Index n, Index limit) { return n < limit ? n : limit; }

// Of what is computed before it is streamed.
inline constexpr Index kStreamBlock = 512;

// Has compute(at, n, out) give the row y: at once, or block by block for its lines to be streamed.
template <class T, class F>
FO_HD void write_row(T* y, Index columns, bool stream, F compute) {
  if (!stream) {
    compute(0, columns, y);
    return;
  }
  alignas(64) T block[kStreamBlock];
  for (Index at = 0, n; at < columns; at += n) {
    bool lines;
    n = stream_run(y + at, at_most(columns - at, kStreamBlock), &lines);
    compute(at, n, lines ? block : y + at);
    if (lines) stream_copy(block, y + at, n);
  }
}

// After the last line of a task: other threads see ordinary stores that follow after the streamed ones.
FO_HD void stream_end() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace FASTOPT_ISA
}  // namespace fastopt
