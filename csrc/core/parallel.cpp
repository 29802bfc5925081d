#include "core/parallel.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace fastopt {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kSpins = 4000;  // some 50 us of pause instructions
// A worker that has spun for nothing gives way to others on its CPU for this long, and then sleeps: waking it
// takes 100 us and more on a virtual machine, and the steps of a training loop are closer than that.
constexpr std::chrono::microseconds kYield{1000};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const long n = std::strtol(text, nullptr, 10);
    if (n >= 1) return int(std::min<long>(n, kMaxThreads));
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::clamp(CPU_COUNT(&set), 1, kMaxThreads);
  return 1;
}

// A participant starts on its own range and then takes what is left of the others', so a thread that is
// late or descheduled delays nobody.
struct alignas(64) Range {
  std::atomic<Index> next{0};
  Index end = 0;
};

class Pool {
 public:
  void run(Index count, int threads, Task task, void* context) {
    grow(threads - 1);
    leave_cpu_of_caller();
    task_ = task;
    context_ = context;
    participants_ = threads;
    for (int t = 0; t < threads; ++t) {
      ranges_[t].next.store(count * t / threads, std::memory_order_relaxed);
      ranges_[t].end = count * (t + 1) / threads;
    }
    gate_.store(kOpen, std::memory_order_release);
    epoch_.fetch_add(1);
    if (sleepers_.load() > 0) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
      }
      wake_.notify_all();
    }
    work(0);
    // Closing the gate first: a worker that has not entered yet never will, and is not waited for.
    gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spin = 0; gate_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr std::uint32_t kOpen = 1u << 31;

  // Where the system grants no more threads, those that there are do the work of the missing ones.
  void grow(int workers) {
    while (workers_ < workers) {
      const int id = workers_ + 1;
      try {
        std::thread worker([this, id, seen = epoch_.load()] { serve(id, seen); });
        handles_[workers_] = worker.native_handle();
        worker.detach();
      } catch (const std::system_error&) {
        return;
      }
      workers_ = id;
    }
  }

  // The scheduler at times wakes a worker on the caller's own CPU and leaves it there for milliseconds, where
  // it only takes the caller's time. Workers may run on any other CPU that the caller may use.
  void leave_cpu_of_caller() {
    const int cpu = sched_getcpu();
    if (cpu == avoided_cpu_ && placed_ == workers_) return;
    avoided_cpu_ = cpu;
    placed_ = workers_;
    cpu_set_t allowed;
    if (cpu < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
    CPU_CLR(std::size_t(cpu), &allowed);
    for (int w = 0; w < workers_; ++w) pthread_setaffinity_np(handles_[w], sizeof allowed, &allowed);
  }

  void work(int self) {
    for (int k = 0; k < participants_; ++k) {
      Range& range = ranges_[(self + k) % participants_];
      for (;;) {
        const Index i = range.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= range.end) break;
        task_(context_, i);
      }
    }
  }

  void serve(int id, std::uint64_t seen) {
    for (;;) {
      for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin) pause();
      const auto patience = std::chrono::steady_clock::now() + kYield;
      while (epoch_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < patience)
        std::this_thread::yield();
      if (epoch_.load() == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return epoch_.load() != seen; });
        sleepers_.fetch_sub(1);
      }
      seen = epoch_.load();
      std::uint32_t gate = gate_.load(std::memory_order_relaxed);
      while ((gate & kOpen) && !gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) {
      }
      if (gate & kOpen) {
        if (id < participants_) work(id);
        gate_.fetch_sub(1, std::memory_order_release);
      }
    }
  }

  // gate_: an open bit and the number of workers inside. The plain fields below it are written only while it
  // is 0 and read only by those inside.
  std::atomic<std::uint32_t> gate_{0};
  Task task_ = nullptr;
  void* context_ = nullptr;
  int participants_ = 1;
  Range ranges_[kMaxThreads];
  int workers_ = 0;
  pthread_t handles_[kMaxThreads] = {};
  int avoided_cpu_ = -1, placed_ = 0;  // the CPU that the first placed_ workers keep off
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Never destroyed: a worker may outlive the static destructors of the process.
Pool* pool = nullptr;
std::mutex* region = new std::mutex;
std::atomic<int> threads{default_threads()};

void before_fork() { region->lock(); }
void after_fork_parent() { region->unlock(); }
// The child has none of its parent's workers; it starts over with a pool of its own.
void after_fork_child() {
  pool = nullptr;
  region = new std::mutex;
}
const int fork_handlers = pthread_atfork(before_fork, after_fork_parent, after_fork_child);

}  // namespace

int num_threads() { return threads.load(std::memory_order_relaxed); }

void set_num_threads(int n) { threads.store(std::clamp(n, 1, kMaxThreads), std::memory_order_relaxed); }

void run_tasks(Index count, bool parallel, Task task, void* context) {
  const int n = int(std::min<Index>(num_threads(), count));
  if (parallel && n > 1) {
    std::unique_lock<std::mutex> lock(*region, std::try_to_lock);
    if (lock.owns_lock()) {
      if (!pool) pool = new Pool;
      pool->run(count, n, task, context);
      return;
    }
  }
  for (Index i = 0; i < count; ++i) task(context, i);
}

}  // namespace fastopt

// For threadpoolctl, which finds and limits the pools of the libraries a process has loaded.
extern "C" __attribute__((visibility("default"))) int fastopt_get_num_threads() {
  return fastopt::num_threads();
}
extern "C" __attribute__((visibility("default"))) void fastopt_set_num_threads(int n) {
  fastopt::set_num_threads(n);
}
