#include "host_cuda.hpp"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// swapcontext asks the system for the signal mask each time, which is most of what it costs. The registers
// that a call keeps are all that a change of stacks has to keep.
extern "C" void host_cuda_change_stack(void** from, void* to);
asm(R"(
  .text
  .type host_cuda_change_stack, @function
host_cuda_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size host_cuda_change_stack, . - host_cuda_change_stack
)");
#else
#include <ucontext.h>
#endif

namespace host_cuda {
namespace {

struct Context {
#if defined(__x86_64__)
  void* top = nullptr;  // of a stack that waits: the registers, and where to go on

  void change_to(Context& to) { host_cuda_change_stack(&top, to.top); }

  // The first change to it calls `run`, as if from nowhere, on a stack that begins at 16 bytes.
  void start(char* memory, std::size_t bytes, void (*run)()) {
    void** const end = reinterpret_cast<void**>(memory + bytes);
    void** const begin = end - 8;
    std::fill(begin, end, nullptr);
    begin[6] = reinterpret_cast<void*>(run);
    top = begin;
  }
#else
  ucontext_t context;

  void change_to(Context& to) { swapcontext(&context, &to.context); }

  void start(char* memory, std::size_t bytes, void (*run)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = memory;
    context.uc_stack.ss_size = bytes;
    makecontext(&context, run, 0);
  }
#endif
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
};

void change(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* frames = nullptr;
  __sanitizer_start_switch_fiber(&frames, to.stack, to.stack_bytes);
  from.change_to(to);
  __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#else
  from.change_to(to);
#endif
}

struct Fiber : Context {
  std::unique_ptr<char[]> memory;
};

struct Barrier {
  unsigned arrived = 0, passed = 0;
};

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = std::size_t(1) << 18;

[[noreturn]] void stop(const char* why) {
  fprintf(stderr, "block %u of %u, %u threads: %s\n", blockIdx.x, gridDim.x, blockDim.x, why);
  std::abort();
}

// A block of the cluster at work.
struct Block {
  unsigned index = 0;
  std::unique_ptr<char[]> shared;
  std::size_t shared_bytes = 0;
  unsigned started = 0;  // threads
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<unsigned long> slots;
  std::vector<Fiber*> waiting, parked;  // in the block, for the cluster
};

// A fiber runs one thread after another and is kept by the one that waits; the rest then get another fiber. A
// kernel without barriers so costs one change of fibers a block.
class Runner {
 public:
  void launch(unsigned grid, unsigned block, std::size_t shared_bytes, const std::function<void()>& kernel,
              unsigned cluster) {
    if (cluster == 0 || grid % cluster != 0) stop("the grid is not of whole clusters");
    kernel_ = &kernel;
    reverse_ = !reverse_;
    gridDim.x = grid, blockDim.x = block;
    for (unsigned c = 0; c < grid; c += cluster) {
      blocks_.clear();
      blocks_.resize(cluster);
      for (unsigned b = 0; b < cluster; ++b) {
        blocks_[b].index = (reverse_ ? grid - cluster - c : c) + b;
        prepare(blocks_[b], shared_bytes);
      }
      run_cluster();
    }
    blocks_.clear();
  }

  void* shared() const { return block_->shared.get(); }
  void* shared_of(unsigned rank, const void* own) const {
    const std::size_t offset = std::size_t(static_cast<const char*>(own) - block_->shared.get());
    if (rank >= blocks_.size() || offset >= block_->shared_bytes) stop("no such block in the cluster");
    return blocks_[rank].shared.get() + offset;
  }
  Barrier& block_barrier() { return block_->barrier; }
  Barrier& warp_barrier() { return block_->warps[threadIdx.x / kWarp]; }
  void* warp_slots() { return block_->slots.data() + threadIdx.x / kWarp * kWarp; }

  void wait(Barrier& barrier, unsigned threads) {
    if (++barrier.arrived == threads) {
      barrier.arrived = 0;
      ++barrier.passed;
      ++progress_;
      return;
    }
    const HostIndex own = threadIdx;
    for (const unsigned passed = barrier.passed; barrier.passed == passed;) {
      block_->waiting.push_back(current_);
      change(*current_, main_);
    }
    threadIdx = own;
  }

  void wait_for_cluster() {
    const HostIndex own = threadIdx;
    block_->parked.push_back(current_);
    ++progress_;
    change(*current_, main_);
    threadIdx = own;
  }

 private:
  static void prepare(Block& block, std::size_t shared_bytes) {
    const unsigned warps = (blockDim.x + kWarp - 1) / kWarp;
    block.shared.reset(new char[shared_bytes]);
    block.shared_bytes = shared_bytes;
    std::memset(block.shared.get(), 0xff, shared_bytes);  // NaN
    block.warps.assign(warps, Barrier());
    block.slots.assign(std::size_t(warps) * kWarp, 0);
  }

  // Each block in turn until all its threads are done or wait for the cluster; then all go on.
  void run_cluster() {
    for (std::size_t parked = 1; parked > 0;) {
      parked = 0;
      for (std::size_t b = 0; b < blocks_.size(); ++b) {
        block_ = &blocks_[reverse_ ? blocks_.size() - 1 - b : b];
        blockIdx.x = block_->index;
        block_->waiting = std::exchange(block_->parked, {});
        run_block();
        parked += block_->parked.size();
      }
      if (parked > 0 && parked != blocks_.size() * blockDim.x)
        stop("threads wait where others of the cluster never come");
    }
  }

  void run_block() {
    while (block_->started < blockDim.x) resume(idle_fiber());
    while (!block_->waiting.empty()) {
      const unsigned long before = progress_;
      const std::vector<Fiber*> round = std::exchange(block_->waiting, {});
      for (Fiber* fiber : round) resume(fiber);
      if (progress_ == before) stop("threads wait where others never come");
    }
  }

  void resume(Fiber* fiber) {
    current_ = fiber;
    change(main_, *fiber);
  }

  Fiber* new_fiber() {
    Fiber& fiber = *fibers_.emplace_back(new Fiber);
    fiber.memory.reset(new char[kStackBytes]);
    fiber.stack = fiber.memory.get();
    fiber.stack_bytes = kStackBytes;
    fiber.start(fiber.memory.get(), kStackBytes, [] { own().run_threads(); });
    return &fiber;
  }

  Fiber* idle_fiber() {
    if (idle_.empty()) return new_fiber();
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  // What a fiber does as long as it lives.
  void run_threads() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_.stack, &main_.stack_bytes);
#endif
    for (;;) {
      while (block_->started < blockDim.x) {
        const unsigned thread = block_->started++;
        threadIdx.x = reverse_ ? blockDim.x - 1 - thread : thread;
        (*kernel_)();
        ++progress_;
      }
      idle_.push_back(current_);
      change(*current_, main_);
    }
  }

 public:
  // The calling thread's.
  static Runner& own() {
    static thread_local Runner runner;
    return runner;
  }

 private:
  const std::function<void()>* kernel_ = nullptr;
  bool reverse_ = true;
  unsigned long progress_ = 0;  // barriers passed and threads finished
  Context main_;
  Fiber* current_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<Block> blocks_;
  Block* block_ = nullptr;
};

}  // namespace

namespace {

struct Owned {
  const char *begin, *end;
  int device;
};
std::vector<Owned> owned;  // the last entry counts
std::mutex owned_mutex;

thread_local unsigned long kernels_run = 0;

}  // namespace

void give_to_device(const void* begin, std::size_t bytes, int device) {
  const std::lock_guard<std::mutex> lock(owned_mutex);
  owned.push_back({static_cast<const char*>(begin), static_cast<const char*>(begin) + bytes, device});
}

int device_of(const void* pointer) {
  const std::lock_guard<std::mutex> lock(owned_mutex);
  for (auto it = owned.rbegin(); it != owned.rend(); ++it)
    if (it->begin <= pointer && pointer < it->end) return it->device;
  return 0;
}

// For Python tests of arrays on two devices.
extern "C" __attribute__((visibility("default"))) void host_cuda_give_to_device(const void* begin,
                                                                                std::size_t bytes,
                                                                                int device) {
  give_to_device(begin, bytes, device);
}

void launch(unsigned grid, unsigned block, std::size_t shared_bytes, const std::function<void()>& kernel,
            unsigned cluster) {
  ++kernels_run;
  Runner::own().launch(grid, block, shared_bytes, kernel, cluster);
}
unsigned long kernels() { return kernels_run; }
extern "C" __attribute__((visibility("default"))) unsigned long host_cuda_kernels() { return kernels(); }

void* shared_memory() { return Runner::own().shared(); }
void* shared_of(unsigned block, void* own) { return Runner::own().shared_of(block, own); }
void* warp_slots() { return Runner::own().warp_slots(); }

unsigned warp_threads() {
  const unsigned rest = blockDim.x - threadIdx.x / kWarp * kWarp;
  return rest < kWarp ? rest : kWarp;
}

void wait_for_block() { Runner::own().wait(Runner::own().block_barrier(), blockDim.x); }
void wait_for_cluster() { Runner::own().wait_for_cluster(); }
void wait_for_warp() { Runner::own().wait(Runner::own().warp_barrier(), warp_threads()); }

}  // namespace host_cuda
