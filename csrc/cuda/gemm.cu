#include "cuda/gemm.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cuda/args.cuh"
#include "cuda/gemm_epilogue.hpp"
#include "cuda/gemm_plan.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

constexpr Index kTickets = 64;  // bytes of a scratch that stay zero
constexpr Index kAligned = 256;

constexpr Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }

// What NVIDIA advises: Hopper's kernels want more.
Index workspace_bytes(int device) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return Index(major == 9 ? 32 : 4) << 20;
}

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return device;
}

constexpr int kGeluTanh = index_in<GeluTanh>(Activations{});

lt::DataType lt_type(DType dtype) {
  constexpr lt::DataType kTypes[kDTypes] = {lt::DataType::f32, lt::DataType::f64, lt::DataType::bf16,
                                            lt::DataType::f16};
  return kTypes[int(dtype)];
}

// The type that factors are rounded to first; their own where they are not.
DType factor_dtype(DType dtype, Precision precision) {
  if (dtype != DType::f32) return dtype;
  return precision == Precision::bf16 ? DType::bf16 : precision == Precision::f16 ? DType::f16 : dtype;
}

lt::Compute compute_type(DType dtype, Precision precision) {
  if (dtype == DType::f64) return lt::Compute::f64;
  return dtype == DType::f32 && precision == Precision::tf32 ? lt::Compute::fast_tf32 : lt::Compute::f32;
}

// An operand as columns of adjacent elements: along k, or along the other axis of `size` elements.
struct Factor {
  const void* data;
  bool along_k;
  Index rows, columns, ld;

  Factor(const void* data_, Index size, Index k, Index step, Index k_step)
      : data(data_), along_k(k > 1 ? k_step == 1 : step != 1 && size > 1) {
    rows = along_k ? k : size;
    columns = along_k ? size : k;
    ld = columns > 1 ? (along_k ? step : k_step) : rows;
  }
  lt::Matrix matrix(DType dtype) const { return {lt_type(dtype), rows, columns, ld}; }
};

// Whether cuBLASLt's GELU may stand for ours. It is the form with tanh, of no stated accuracy: good enough
// where factors or results have few bits.
bool gelu_fits(DType dtype, Precision precision) {
  return dtype == DType::bf16 || dtype == DType::f16 || (dtype == DType::f32 && precision != Precision::ieee);
}

// The epilogue of cuBLASLt that does all that follows the product, sums apart; `none` where there is no such
// one. Its relu makes 0 of a NaN, and nothing says how the bits of its masks lie: neither is used.
lt::Epilogue lt_epilogue(DType dtype, const DeviceGemm& args) {
  using lt::Epilogue;
  const fastopt::Epilogue& e = args.epilogue;
  if (dtype == DType::f64 || e.kept_output || e.dropout || e.residual) return Epilogue::none;
  const bool aux_fits = args.n % 8 == 0;
  if (e.activation == kGeluTanh && e.gradient < 0 && gelu_fits(dtype, args.precision)) {
    if (!e.kept_input) return e.bias ? Epilogue::gelu_bias : Epilogue::gelu;
    if (aux_fits) return e.bias ? Epilogue::gelu_aux_bias : Epilogue::gelu_aux;
  }
  if (e.activation >= 0 || e.kept_input) return Epilogue::none;
  if (e.gradient == kGeluTanh && !e.bias && aux_fits && args.k > 1 && gelu_fits(dtype, args.precision))
    return args.c_sums ? Epilogue::dgelu_bgrad : Epilogue::dgelu;
  if (e.gradient >= 0) return Epilogue::none;
  if (e.bias) return Epilogue::bias;
  if (args.alpha_at) return Epilogue::none;  // nothing says whether alpha scales the sums
  // Of rounded factors it would sum the rounded ones.
  const bool as_stored = dtype != DType::f32 || args.precision == Precision::ieee;
  return args.a_sums && as_stored && args.k > 1 ? Epilogue::bgrad_b : Epilogue::none;
}

bool needs_finish(const fastopt::Epilogue& e) {
  return e.bias || e.kept_input || e.activation >= 0 || e.kept_output || e.dropout || e.gradient >= 0 ||
         e.residual;
}

// A scratch is dealt out in pieces; without one this tells how large it has to be.
class Pieces {
 public:
  explicit Pieces(void* scratch) : at_(reinterpret_cast<std::uintptr_t>(scratch) + kTickets), begin_(at_) {}
  void* take(Index bytes) {
    at_ = std::uintptr_t(round_up(Index(at_), kAligned));
    void* const piece = reinterpret_cast<void*>(at_);
    at_ += std::uintptr_t(bytes);
    return piece;
  }
  Index bytes() const { return Index(at_ - begin_) + kTickets + kAligned; }

 private:
  std::uintptr_t at_, begin_;
};

// A product with its operands as cuBLASLt takes them: column by column, so that C^T = B^T A^T is computed.
class Multiplication {
 public:
  Multiplication(DType dtype, const DeviceGemm& args, void* scratch)
      : dtype_(dtype),
        factor_dtype_(factor_dtype(dtype, args.precision)),
        args_(args),
        scratch_(scratch),
        a_(args.b.data, args.n, args.k, args.b.col, args.b.row),
        b_(args.a.data, args.m, args.k, args.a.row, args.a.col),
        pieces_(scratch),
        device_(current_device()),
        workspace_bytes_(workspace_bytes(device_)),
        workspace_(pieces_.take(workspace_bytes_)) {
    if (factor_dtype_ == dtype_) return;
    rounded_a_ = pieces_.take(a_.columns * round_up(a_.rows, 8) * item_bytes(factor_dtype_));
    rounded_b_ = pieces_.take(b_.columns * round_up(b_.rows, 8) * item_bytes(factor_dtype_));
  }

  // Sums are taken last: they find the whole scratch theirs.
  Index scratch_bytes() const {
    return std::max({pieces_.bytes(), args_.c_sums ? column_sums_scratch_bytes(args_.m, args_.n) : 0,
                     args_.a_sums ? column_sums_scratch_bytes(args_.k, args_.m) : 0});
  }

  void run(CudaStream stream) {
    if (args_.m > 0 && args_.n > 0) {
      if (args_.k > 0) {
        round_factors(stream);
        const lt::Product product = describe();
        const auto timer = [this, stream] { return new_timer(stream); };
        multiply(*lt::plan_of(product, pointers(product.epilogue), timer), stream);
        return;
      }
      if (args_.beta != 1.0) scale_on_device(dtype_, args_, stream);
      if (needs_finish(args_.epilogue)) finish_on_device(dtype_, args_, stream);
    }
    sum(lt::Epilogue::none, stream);
  }

 private:
  // The product and all that follows it.
  void multiply(lt::Plan& plan, CudaStream stream) {
    const lt::Epilogue done = plan.epilogue();
    plan.run({args_.alpha, args_.beta, args_.alpha_at, args_.beta_at}, pointers(done), stream);
    const bool finished = done != lt::Epilogue::none && done != lt::Epilogue::bgrad_b;
    if (!finished && needs_finish(args_.epilogue)) finish_on_device(dtype_, args_, stream);
    sum(done, stream);
  }

  // The sums that are wanted and not done.
  void sum(lt::Epilogue done, CudaStream stream) const {
    if (args_.c_sums && done != lt::Epilogue::dgelu_bgrad)
      column_sums_on_device(dtype_, args_.c, args_.m, args_.n, args_.c_sums, false, scratch_, stream);
    if (args_.a_sums && done != lt::Epilogue::bgrad_b)
      column_sums_on_device(dtype_, args_.a.data, args_.k, args_.m, args_.a_sums, false, scratch_, stream);
  }

  // None where there is to be no timing, and no room for it.
  lt::Timer new_timer(CudaStream stream) const;

  void round_factors(CudaStream stream) {
    if (factor_dtype_ == dtype_) return;
    for (const auto& [factor, to] : {std::pair{&a_, rounded_a_}, {&b_, rounded_b_}}) {
      const Index ld = round_up(factor->rows, 8);
      round_factor_on_device(factor_dtype_, factor->data, factor->rows, factor->columns, factor->ld, to, ld,
                             stream);
      factor->data = to;
      factor->ld = ld;
    }
  }

  lt::Product describe() const {
    lt::Product product = {};
    product.device = device_;
    product.a = a_.matrix(factor_dtype_);
    product.b = b_.matrix(factor_dtype_);
    product.d = {lt_type(dtype_), args_.n, args_.m, args_.m > 1 ? args_.c_row : args_.n};
    product.a_transposed = a_.along_k;
    product.b_transposed = !b_.along_k;
    product.adds = args_.beta != 0.0 || args_.beta_at;
    product.scalars_on_device = args_.alpha_at;
    product.compute = compute_type(dtype_, args_.precision);
    product.epilogue = lt_epilogue(dtype_, args_);
    product.aux_ld = args_.n;
    product.workspace = workspace_bytes_;
    const lt::Pointers all = pointers(product.epilogue);
    product.a_alignment = lt::alignment(all.a);
    product.b_alignment = lt::alignment(all.b);
    product.d_alignment = lt::alignment(all.d);
    product.bias_alignment = lt::alignment(all.bias);
    product.aux_alignment = lt::alignment(all.aux);
    return product;
  }

  lt::Pointers pointers(lt::Epilogue epilogue) const {
    const fastopt::Epilogue& e = args_.epilogue;
    lt::Pointers all{a_.data, b_.data, args_.c, nullptr, nullptr, workspace_};
    switch (epilogue) {
      case lt::Epilogue::dgelu_bgrad:
        all.bias = args_.c_sums;
        all.aux = e.x;
        break;
      case lt::Epilogue::dgelu:
        all.aux = e.x;
        break;
      case lt::Epilogue::bgrad_b:
        all.bias = args_.a_sums;
        break;
      case lt::Epilogue::none:
        break;
      default:
        all.bias = e.bias;
        all.aux = e.kept_input;
    }
    return all;
  }

  DType dtype_, factor_dtype_;
  DeviceGemm args_;
  void* scratch_;
  Factor a_, b_;  // of cuBLASLt: our B and A
  Pieces pieces_;
  int device_;
  Index workspace_bytes_;
  void *workspace_, *rounded_a_ = nullptr, *rounded_b_ = nullptr;
};

// Allocating and waiting is allowed while another stream of the process is being captured.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

struct EventDestroy {
  void operator()(CUevent_st* event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<CUevent_st, EventDestroy>;

Event new_event() {
  cudaEvent_t event;
  check(cudaEventCreate(&event));
  return Event(event);
}

// Memory in place of outputs, with their alignment: what is timed leaves no trace.
class Stand {
 public:
  void* in_for(const void* output, Index bytes) {
    if (!output) return nullptr;
    memory_.push_back(device_memory(bytes + kAligned));
    return static_cast<char*>(memory_.back().get()) + reinterpret_cast<std::uintptr_t>(output) % kAligned;
  }

 private:
  std::vector<DeviceArray<void>> memory_;
};

bool autotunes() {
  const char* const setting = std::getenv("FASTOPT_CUDA_AUTOTUNE");
  return !setting || std::strcmp(setting, "0") != 0;
}

// The least of some rounds of several products each, in milliseconds; infinite where one fails.
template <class F>
float time_of(const F& run, CudaStream stream) {
  constexpr int kRounds = 3, kRuns = 5;
  const Event begin = new_event(), end = new_event();
  float least = std::numeric_limits<float>::infinity();
  try {
    run();
    for (int round = 0; round < kRounds; ++round) {
      check(cudaEventRecord(begin.get(), stream));
      for (int i = 0; i < kRuns; ++i) run();
      check(cudaEventRecord(end.get(), stream));
      check(cudaEventSynchronize(end.get()));
      float took = 0.0f;
      check(cudaEventElapsedTime(&took, begin.get(), end.get()));
      least = std::min(least, took);
    }
  } catch (const std::runtime_error&) {
    return std::numeric_limits<float>::infinity();
  }
  return least;
}

lt::Timer Multiplication::new_timer(CudaStream stream) const {
  if (!autotunes() || is_capturing(stream)) return nullptr;
  const Relaxed relaxed;
  const auto stand = std::make_shared<Stand>();
  const auto trial = std::make_shared<Multiplication>(*this);
  DeviceGemm& args = trial->args_;
  const Index item = item_bytes(dtype_), bytes = args.m * args.n * item;
  try {
    args.c = stand->in_for(args.c, args.m * args.c_row * item);
    args.epilogue.kept_input = stand->in_for(args.epilogue.kept_input, bytes);
    args.epilogue.kept_output = stand->in_for(args.epilogue.kept_output, bytes);
    args.c_sums = stand->in_for(args.c_sums, args.n * item);
    args.a_sums = stand->in_for(args.a_sums, args.m * item);
  } catch (const DeviceError&) {
    return nullptr;
  }
  return [stand, trial, stream](lt::Plan& plan) {
    const Relaxed also_relaxed;
    return time_of([&] { trial->multiply(plan, stream); }, stream);
  };
}

}  // namespace
}  // namespace FASTOPT_ISA

void gemm_on_device(DType dtype, const DeviceGemm& args, void* scratch, CudaStream stream) {
  Multiplication(dtype, args, scratch).run(stream);
}

Index gemm_scratch_bytes(DType dtype, const DeviceGemm& args) {
  return Multiplication(dtype, args, nullptr).scratch_bytes();
}

}  // namespace fastopt
