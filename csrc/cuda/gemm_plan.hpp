// Products as cuBLASLt sees them, with descriptors made once and the algorithm that was chosen for each.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/array.hpp"
#include "cuda/cublaslt.hpp"

namespace fastopt::lt {

// A matrix of `columns` columns with `rows` adjacent elements each, `ld` elements apart.
struct Matrix {
  DataType type;
  Index rows, columns, ld;
};

// D = epilogue(alpha op(A) op(B) + beta D): all that the choice of an algorithm depends on.
struct Product {
  int device;
  Matrix a, b, d;
  bool a_transposed, b_transposed;
  bool adds;  // beta may be other than 0
  bool scalars_on_device;
  Compute compute;
  Epilogue epilogue;  // all that follows, where cuBLASLt can do it; else `none`
  Index aux_ld;
  Index workspace;  // bytes
  // In bytes; 0 where there is none.
  Index a_alignment, b_alignment, d_alignment, bias_alignment, aux_alignment;

  std::array<Index, 26> fields() const;
  bool operator==(const Product& other) const { return fields() == other.fields(); }
};

// What a pointer is a multiple of, as far as cuBLASLt cares.
Index alignment(const void* pointer);

struct Pointers {
  const void *a, *b;
  void* d;
  const void *bias, *aux;  // as the epilogue takes or leaves them
  void* workspace;
};

// Alpha and beta: numbers of the host, or where they lie in device memory, in the type that sums have.
struct Scalars {
  double alpha, beta;
  const void *alpha_at = nullptr, *beta_at = nullptr;
};

// One way to compute a product.
class Plan {
 public:
  // Such an epilogue, which may be less than the product's.
  Plan(const Product& product, Epilogue epilogue, const Pointers& pointers);

  // How it may be computed, the best guess first; empty where it cannot be.
  const std::vector<Heuristic>& candidates() const { return candidates_; }
  void choose(const Heuristic& candidate) { algo_ = candidate.algo; }

  Epilogue epilogue() const { return epilogue_; }
  void run(const Scalars& scalars, const Pointers& pointers, CUstream_st* stream);

 private:
  struct Destroy {
    void operator()(Desc desc) const { functions().desc_destroy(desc); }
    void operator()(Layout layout) const { functions().layout_destroy(layout); }
    void operator()(Preference preference) const { functions().preference_destroy(preference); }
  };
  using OwnLayout = std::unique_ptr<LayoutOpaque, Destroy>;

  static OwnLayout layout_of(const Matrix& matrix);
  template <class T>
  void set(DescAttribute attribute, const T& value);
  void set_pointers(const Pointers& pointers);
  void find_candidates(const Product& product);

  Epilogue epilogue_;
  Compute compute_;
  bool scalars_on_device_;
  Index workspace_;
  Handle handle_;
  std::unique_ptr<DescOpaque, Destroy> desc_;
  OwnLayout a_, b_, d_;
  std::vector<Heuristic> candidates_;
  Algo algo_ = {};
  std::mutex mutex_;  // the descriptor holds one call's pointers
};

// How long the product takes by a plan, all that follows it included; infinite where it fails.
using Timer = std::function<float(Plan&)>;

// The plan of a product: the fastest of those with its epilogue and those without, by the timer. `timer` is
// asked for one until it has given one; without, it is the first guess, and an epilogue where there can be
// one.
std::shared_ptr<Plan> plan_of(const Product& product, const Pointers& pointers,
                              const std::function<Timer()>& timer);

}  // namespace fastopt::lt
