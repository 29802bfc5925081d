#include "cuda/gemm_plan.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <unordered_map>

namespace fastopt::lt {
namespace {

constexpr int kCandidates = 8;  // of one epilogue

// One for each device; never destroyed, since the driver may be gone first.
Handle handle_of(int device) {
  static std::mutex mutex;
  static auto& handles = *new std::map<int, Handle>;
  const std::lock_guard<std::mutex> lock(mutex);
  Handle& handle = handles[device];
  if (!handle) check(functions().create(&handle), "its start");
  return handle;
}

struct Hash {
  std::size_t operator()(const Product& product) const {
    std::uint64_t hash = 0;
    for (const Index field : product.fields()) {
      hash = (hash ^ std::uint64_t(field)) * 0x9E3779B97F4A7C15;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

struct Entry {
  std::shared_ptr<Plan> plan;
  bool timed = false;
};

struct Cache {
  std::mutex mutex;
  std::unordered_map<Product, Entry, Hash> entries;
};

Cache& cache() {
  static auto& cache = *new Cache;
  return cache;
}

// Leaves the plan's fastest candidate chosen and returns its time.
float choose_by_time(Plan& plan, const Timer& time) {
  float best = std::numeric_limits<float>::infinity();
  const Heuristic* fastest = &plan.candidates().front();
  for (const Heuristic& candidate : plan.candidates()) {
    plan.choose(candidate);
    const float took = time(plan);
    if (took < best) best = took, fastest = &candidate;
  }
  plan.choose(*fastest);
  return best;
}

std::shared_ptr<Plan> new_plan(const Product& product, const Pointers& pointers, const Timer& time) {
  std::vector<std::shared_ptr<Plan>> ways;
  const auto add = [&](Epilogue epilogue) {
    auto plan = std::make_shared<Plan>(product, epilogue, pointers);
    if (!plan->candidates().empty()) ways.push_back(std::move(plan));
  };
  if (product.epilogue != Epilogue::none) add(product.epilogue);
  if (ways.empty() || time) add(Epilogue::none);
  if (ways.empty())
    throw std::runtime_error("cuBLASLt has no algorithm for a product of " +
                             std::to_string(product.d.columns) + " x " + std::to_string(product.d.rows));
  if (!time) return ways.front();
  std::vector<float> times;
  for (const auto& way : ways) times.push_back(choose_by_time(*way, time));
  return ways[std::size_t(std::min_element(times.begin(), times.end()) - times.begin())];
}

}  // namespace

std::array<Index, 26> Product::fields() const {
  const auto type = [](const Matrix& matrix) { return Index(matrix.type); };
  return {device,
          type(a),
          a.rows,
          a.columns,
          a.ld,
          type(b),
          b.rows,
          b.columns,
          b.ld,
          type(d),
          d.rows,
          d.columns,
          d.ld,
          a_transposed,
          b_transposed,
          adds,
          scalars_on_device,
          Index(compute),
          Index(epilogue),
          aux_ld,
          workspace,
          a_alignment,
          b_alignment,
          d_alignment,
          bias_alignment,
          aux_alignment};
}

Index alignment(const void* pointer) {
  constexpr std::uintptr_t kMost = 256;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer) | kMost;
  return pointer ? Index(address & -address) : 0;
}

Plan::Plan(const Product& product, Epilogue epilogue, const Pointers& pointers)
    : epilogue_(epilogue),
      compute_(product.compute),
      scalars_on_device_(product.scalars_on_device),
      workspace_(product.workspace),
      handle_(handle_of(product.device)),
      a_(layout_of(product.a)),
      b_(layout_of(product.b)),
      d_(layout_of(product.d)) {
  Desc desc;
  const DataType scale = compute_ == Compute::f64 ? DataType::f64 : DataType::f32;
  check(functions().desc_create(&desc, compute_, scale), "a product's description");
  desc_.reset(desc);
  set(DescAttribute::transpose_a, product.a_transposed ? Operation::transpose : Operation::none);
  set(DescAttribute::transpose_b, product.b_transposed ? Operation::transpose : Operation::none);
  set(DescAttribute::epilogue, epilogue);
  if (scalars_on_device_) set(DescAttribute::pointer_mode, PointerMode::device);
  if (pointers.aux) set(DescAttribute::aux_ld, product.aux_ld);
  set_pointers(pointers);
  find_candidates(product);
}

Plan::OwnLayout Plan::layout_of(const Matrix& matrix) {
  Layout layout;
  check(functions().layout_create(&layout, matrix.type, std::uint64_t(matrix.rows),
                                  std::uint64_t(matrix.columns), matrix.ld),
        "a matrix's description");
  return OwnLayout(layout);
}

template <class T>
void Plan::set(DescAttribute attribute, const T& value) {
  check(functions().desc_set(desc_.get(), attribute, &value, sizeof value), "an option of a product");
}

void Plan::set_pointers(const Pointers& pointers) {
  if (epilogue_ == Epilogue::none) return;
  if (pointers.bias) set(DescAttribute::bias_pointer, pointers.bias);
  if (pointers.aux) set(DescAttribute::aux_pointer, pointers.aux);
}

// The heuristic reads the alignment of bias and aux from the pointers themselves.
void Plan::find_candidates(const Product& product) {
  Preference preference;
  check(functions().preference_create(&preference), "a preference");
  const std::unique_ptr<PreferenceOpaque, Destroy> owned(preference);
  const auto prefer = [&](PreferenceAttribute attribute, const auto& value) {
    check(functions().preference_set(preference, attribute, &value, sizeof value), "a preference");
  };
  prefer(PreferenceAttribute::most_workspace, std::uint64_t(product.workspace));
  prefer(PreferenceAttribute::alignment_a, std::uint32_t(product.a_alignment));
  prefer(PreferenceAttribute::alignment_b, std::uint32_t(product.b_alignment));
  prefer(PreferenceAttribute::alignment_c, std::uint32_t(product.d_alignment));
  prefer(PreferenceAttribute::alignment_d, std::uint32_t(product.d_alignment));
  candidates_.resize(kCandidates);
  int found = 0;
  const Status status = functions().heuristic(handle_, desc_.get(), a_.get(), b_.get(), d_.get(), d_.get(),
                                              preference, kCandidates, candidates_.data(), &found);
  // An epilogue that it does not know is an invalid value to it, or not supported.
  if (status != Status::not_supported && status != Status::invalid_value)
    check(status, "the search for an algorithm");
  candidates_.resize(status == Status::success ? std::size_t(found) : 0);
  std::erase_if(candidates_, [](const Heuristic& found_one) { return found_one.state != Status::success; });
  if (!candidates_.empty()) choose(candidates_.front());
}

void Plan::run(const Scalars& scalars, const Pointers& pointers, CUstream_st* stream) {
  const float alpha = float(scalars.alpha), beta = float(scalars.beta);
  const bool wide = compute_ == Compute::f64;
  const void *alpha_at = scalars.alpha_at, *beta_at = scalars.beta_at;
  if (!scalars_on_device_) {
    alpha_at = wide ? static_cast<const void*>(&scalars.alpha) : &alpha;
    beta_at = wide ? static_cast<const void*>(&scalars.beta) : &beta;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  set_pointers(pointers);
  check(functions().matmul(handle_, desc_.get(), alpha_at, pointers.a, a_.get(), pointers.b, b_.get(),
                           beta_at, pointers.d, d_.get(), pointers.d, d_.get(), &algo_, pointers.workspace,
                           std::size_t(workspace_), stream),
        "a product");
}

std::shared_ptr<Plan> plan_of(const Product& product, const Pointers& pointers,
                              const std::function<Timer()>& timer) {
  Cache& all = cache();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Entry& entry = all.entries[product];
  if (entry.timed) return entry.plan;
  const Timer time = timer();
  if (!entry.plan || time) entry = {new_plan(product, pointers, time), bool(time)};
  return entry.plan;
}

}  // namespace fastopt::lt
