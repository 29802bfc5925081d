#include "core/dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastopt {

// Each level's table, defined by its own copy of cpu/table.cpp.
#define FASTOPT_DECLARE(isa)  \
  namespace isa {             \
  KernelTable kernel_table(); \
  }
#ifdef FASTOPT_HAVE_v2
FASTOPT_DECLARE(v2)
#endif
#ifdef FASTOPT_HAVE_v3
FASTOPT_DECLARE(v3)
#endif
#ifdef FASTOPT_HAVE_v4
FASTOPT_DECLARE(v4)
#endif
#ifdef FASTOPT_HAVE_neon
FASTOPT_DECLARE(neon)
#endif

namespace {

constexpr int kMaxLevels = 4;

struct Levels {
  KernelTable tables[kMaxLevels] = {};
  const char* names[kMaxLevels + 1] = {};
  int size = 0;

  void add(bool supported, const KernelTable& table) {
    if (!supported) return;
    tables[size] = table;
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx512bf16")) tables[size].bf16_pairs = nullptr;
#endif
    names[size++] = table.isa;
  }

  Levels() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#ifdef FASTOPT_HAVE_v4
    add(__builtin_cpu_supports("x86-64-v4") != 0, v4::kernel_table());
#endif
#ifdef FASTOPT_HAVE_v3
    add(__builtin_cpu_supports("x86-64-v3") != 0, v3::kernel_table());
#endif
#ifdef FASTOPT_HAVE_v2
    add(__builtin_cpu_supports("x86-64-v2") != 0, v2::kernel_table());
#endif
#ifdef FASTOPT_HAVE_neon
    add(true, neon::kernel_table());
#endif
  }

  const KernelTable* find(const char* name) const {
    for (int i = 0; i < size; ++i)
      if (std::strcmp(names[i], name) == 0) return &tables[i];
    return nullptr;
  }
};

const Levels& levels() {
  static const Levels found;
  return found;
}

const char* rejected = nullptr;

const KernelTable* initial_table() {
  if (const char* asked = std::getenv("FASTOPT_ISA"); asked && *asked) {
    if (const KernelTable* table = levels().find(asked)) return table;
    rejected = asked;
  }
  return &levels().tables[0];
}

std::atomic<const KernelTable*> current{initial_table()};

}  // namespace

const KernelTable& kernels() { return *current.load(std::memory_order_relaxed); }

bool set_isa(const char* name) {
  const KernelTable* table = levels().find(name);
  if (table) current.store(table, std::memory_order_relaxed);
  return table != nullptr;
}

const char* const* available_isas() { return levels().names; }
const char* rejected_isa() { return rejected; }

}  // namespace fastopt
