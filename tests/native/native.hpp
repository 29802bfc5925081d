// What the tests of the native core share: memory between guards, numbers, comparisons, threads.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "formulas/storage.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) (void(address), void(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) (void(address), void(bytes))
#endif

namespace fastopt::test {

// n elements that end where an inaccessible page begins: a read or write behind them stops the program in any
// build, masked vector loads included, which the address sanitizer does not see. The bytes before them must
// keep their value, and the address sanitizer watches those. Elements are aligned for T and no better.
template <class T>
class Guarded {
 public:
  Guarded() = default;
  explicit Guarded(Index n, T value = T()) : n_(n) {
    const std::size_t page = std::size_t(sysconf(_SC_PAGESIZE)), used = std::size_t(n) * sizeof(T);
    inside_ = (used + kFront + page - 1) / page * page;
    bytes_ = inside_ + 2 * page;
    base_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) perror("mmap"), std::abort();
    first_ = base_ + page;
    if (mprotect(first_, inside_, PROT_READ | PROT_WRITE) != 0) perror("mprotect"), std::abort();
    std::memset(first_, kCanary, inside_);
    data_ = reinterpret_cast<T*>(first_ + inside_ - used);
    for (Index i = 0; i < n; ++i) data_[i] = value;
    ASAN_POISON_MEMORY_REGION(first_, front());
  }
  Guarded(Guarded&& other) noexcept { *this = std::move(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(n_, other.n_), std::swap(inside_, other.inside_), std::swap(bytes_, other.bytes_);
    std::swap(base_, other.base_), std::swap(first_, other.first_), std::swap(data_, other.data_);
    return *this;
  }
  ~Guarded() {
    if (!base_) return;
    ASAN_UNPOISON_MEMORY_REGION(first_, front());
    bool intact = true;
    for (std::size_t i = 0; i < front(); ++i) intact &= static_cast<unsigned char>(first_[i]) == kCanary;
    CHECK(intact);
    munmap(base_, bytes_);
  }

  T* data() const { return data_; }
  T& operator[](Index i) const { return data_[i]; }
  Index size() const { return n_; }

 private:
  static constexpr unsigned char kCanary = 0xA5;
  static constexpr std::size_t kFront = 64;  // at least
  std::size_t front() const { return std::size_t(reinterpret_cast<char*>(data_) - first_); }

  Index n_ = 0;
  std::size_t inside_ = 0, bytes_ = 0;
  char *base_ = nullptr, *first_ = nullptr;
  T* data_ = nullptr;
};

// splitmix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  Index below(Index n) { return Index(bits() % std::uint64_t(n)); }
  // In [-limit, limit]: sums of products of such numbers are exact, whatever their order.
  double integer(Index limit) { return double(below(2 * limit + 1) - limit); }
  double uniform(double low, double high) { return low + (high - low) * (double(bits() >> 11) * 0x1p-53); }

  template <class T>
  Guarded<T> integers(Index n, Index limit) {
    Guarded<T> x(n);
    for (Index i = 0; i < n; ++i) x[i] = Store<T>::from(Compute<T>(integer(limit)));
    return x;
  }
  template <class T>
  Guarded<T> uniforms(Index n, double low, double high) {
    Guarded<T> x(n);
    for (Index i = 0; i < n; ++i) x[i] = Store<T>::from(Compute<T>(uniform(low, high)));
    return x;
  }

 private:
  std::uint64_t state_;
};

// The distance of neighbouring numbers at 1 in a storage type.
template <class S>
inline constexpr double kEps = 0x1p-23;
template <>
inline constexpr double kEps<double> = 0x1p-52;
template <>
inline constexpr double kEps<Bf16> = 0x1p-7;
template <>
inline constexpr double kEps<F16> = 0x1p-10;

template <class S>
inline constexpr DType kDType = DType::f32;
template <>
inline constexpr DType kDType<double> = DType::f64;
template <>
inline constexpr DType kDType<Bf16> = DType::bf16;
template <>
inline constexpr DType kDType<F16> = DType::f16;

// Counts a failure unless got is want within `units` steps of S at max(|want|, scale). 0 units: exactly.
template <class S>
void check_near(const std::string& what, Index at, double got, double want, double units,
                double scale = 1.0) {
  if (got == want || (std::isnan(got) && std::isnan(want))) return;
  if (std::abs(got - want) <= units * kEps<S> * std::fmax(std::abs(want), scale)) return;
  if (failures++ < 50)
    fprintf(stderr, "%s [%ld]: %.17g, expected %.17g\n", what.c_str(), long(at), got, want);
}

// f() on each instruction set that this CPU has.
template <class F>
void on_each_isa(F f) {
  for (const char* const* isa = available_isas(); *isa; ++isa) {
    CHECK(set_isa(*isa));
    f();
  }
  set_isa(available_isas()[0]);
}

// f(0), ..., f(n - 1), each on a thread of its own, released together.
template <class F>
void in_threads(int n, F f) {
  std::atomic<int> waiting{n};
  std::vector<std::thread> threads;
  for (int t = 0; t < n; ++t)
    threads.emplace_back([&, t] {
      for (--waiting; waiting > 0;) std::this_thread::yield();
      f(t);
    });
  for (std::thread& thread : threads) thread.join();
}

// Sets the number of threads to 1, 2, ..., 5, 1, ... again and again while it lives.
class ChangingThreads {
 public:
  ChangingThreads();
  ~ChangingThreads();

 private:
  int before_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// The parts of the program, one for each argument that it takes.
void test_pool();
void test_fork();
void test_step();
void test_elementwise();
void test_reduce();
void test_rows();
void test_batch_norm();
void test_gemm();
void test_program();
void test_strips();

}  // namespace fastopt::test
