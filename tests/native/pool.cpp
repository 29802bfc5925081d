// The thread pool: each task of a region runs exactly once, whoever else is inside a region, and what tasks
// wrote is there when the region ends. The counters are plain integers, for the thread sanitizer to judge.
#include "core/parallel.hpp"

#include <sys/wait.h>

#include "native.hpp"

namespace fastopt::test {
namespace {

constexpr Index kCounts[] = {0, 1, 2, 3, 5, 17, 64, 257, 1000};

bool all_are(const std::vector<int>& done, int value) {
  for (const int d : done)
    if (d != value) return false;
  return true;
}

bool region_is_right(std::vector<int>& done, Index count) {
  done.assign(std::size_t(count), 0);
  parallel_for(count, true, [&](Index i) { ++done[std::size_t(i)]; });
  return all_are(done, 1);
}

void check_callers(int callers, int regions) {
  in_threads(callers, [=](int caller) {
    std::vector<int> done(1000);
    Random random(std::uint64_t(caller) + 1);
    for (int r = 0; r < regions; ++r) CHECK(region_is_right(done, kCounts[random.below(std::size(kCounts))]));
  });
}

// A region inside a task, on whichever thread runs that task.
void check_nested() {
  std::vector<std::vector<int>> done(64, std::vector<int>(33));
  parallel_for(Index(done.size()), true, [&](Index i) {
    std::vector<int>& inner = done[std::size_t(i)];
    parallel_for(Index(inner.size()), true, [&](Index j) { inner[std::size_t(j)] += int(i + j); });
  });
  for (std::size_t i = 0; i < done.size(); ++i)
    for (std::size_t j = 0; j < done[i].size(); ++j) CHECK(done[i][j] == int(i + j));
}

// Long enough between regions for the workers to fall asleep, so that they have to be woken, and tasks that
// wait, so that every worker gets some, even on one CPU.
void check_sleepers() {
  for (int r = 0; r < 20; ++r) {
    usleep(3000);
    std::vector<int> done(32);
    parallel_for(Index(done.size()), true, [&](Index i) {
      usleep(50);
      ++done[std::size_t(i)];
    });
    CHECK(all_are(done, 1));
  }
}

// Serial where it is asked for: on the caller's thread and in order.
void check_serial() {
  std::vector<Index> order;
  const std::thread::id caller = std::this_thread::get_id();
  parallel_for(100, false, [&](Index i) {
    CHECK(std::this_thread::get_id() == caller);
    order.push_back(i);
  });
  CHECK(order.size() == 100);
  for (std::size_t i = 0; i < order.size(); ++i) CHECK(order[i] == Index(i));
}

// A child that finds no worker and no memory of a region; true where its regions come out right.
bool child_is_right() {
  const pid_t child = fork();
  if (child == 0) {
    std::vector<int> done;
    bool right = true;
    for (int r = 0; r < 20; ++r) right &= region_is_right(done, 257);
    _exit(right ? 0 : 1);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

void test_pool() {
  set_num_threads(0);
  CHECK(num_threads() == 1);
  set_num_threads(100000);
  CHECK(num_threads() == 256);
  check_serial();
  for (const int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    check_callers(1, 300);
    check_callers(3, 1000);
    check_nested();
    check_sleepers();
  }
  const ChangingThreads changing;
  check_callers(4, 2000);
  for (int i = 0; i < 20; ++i) check_nested();
}

// While other threads open regions all the time. They allocate nothing: a sanitizer's allocator does not
// survive a fork in the middle of an allocation.
void test_fork() {
  set_num_threads(3);
  CHECK(child_is_right());  // before the parent has a pool
  std::vector<int> done;
  CHECK(region_is_right(done, 257));
  CHECK(child_is_right());
  std::atomic<bool> finished{false};
  std::vector<std::vector<int>> counts(2, std::vector<int>(257));
  int rounds[2] = {};
  std::vector<std::thread> callers;
  for (std::size_t c = 0; c < 2; ++c)
    callers.emplace_back([&, c] {
      for (; !finished; ++rounds[c]) parallel_for(257, true, [&](Index i) { ++counts[c][std::size_t(i)]; });
    });
  for (int i = 0; i < 30; ++i) CHECK(child_is_right());
  finished = true;
  for (std::thread& caller : callers) caller.join();
  for (std::size_t c = 0; c < 2; ++c) CHECK(all_are(counts[c], rounds[c]));
}

}  // namespace fastopt::test
