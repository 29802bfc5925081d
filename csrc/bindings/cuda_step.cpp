// StepPlan over device memory: checks as on the CPU, then a launch per optimizer step, or two with a norm.
#include "bindings/cuda_modules.hpp"
#include "bindings/device_arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/step.hpp"
#include "cuda/attempts.hpp"
#include "cuda/kernels.hpp"
#include "cuda/progress.hpp"

namespace fastopt {
namespace {

using Arrays = PlanArrays<DeviceCall>;

// Where so many float64 of the device's are; null for None.
double* numbers(DeviceCall& call, const py::object& object, const ArgName& name, Index n) {
  if (object.is_none()) return nullptr;
  const DeviceView view = call.view(object, name);
  require_dense(view, name, true);
  if (view.dtype != DType::f64 || view.size != n)
    throw py::type_error(name.prefix() + " is " + dtype_name(view.dtype) + " of shape " + shape_text(view) +
                         ", expected " + std::to_string(n) + " float64");
  return static_cast<double*>(view.data);
}
double* number(DeviceCall& call, const py::object& object, const ArgName& name) {
  return numbers(call, object, name, 1);
}
LossScale* loss_scale(DeviceCall& call, const py::object& object, const ArgName& name) {
  static_assert(sizeof(LossScale) == 3 * sizeof(double));
  if (object.is_none()) throw py::type_error(name.prefix() + " is None, expected 3 float64");
  return reinterpret_cast<LossScale*>(numbers(call, object, name, 3));
}

// norms: float64 on the device, of parts of the gradients. `norm` and `scale` receive the norm of all, and
// what scales gradients of that norm to max_norm.
void join_norms(const py::object& norms_, double max_norm, const py::object& norm, const py::object& scale,
                std::uintptr_t stream) {
  DeviceCall call(stream);
  const ArgName name{"join_norms", "norms"};
  const DeviceView norms = call.view(norms_, name);
  require_dense(norms, name, false);
  if (norms.dtype != DType::f64)
    throw py::type_error(name.prefix() + " is " + dtype_name(norms.dtype) + ", expected float64");
  join_norms_on_device(static_cast<const double*>(norms.data), norms.size, max_norm,
                       number(call, norm, {"join_norms", "norm"}),
                       number(call, scale, {"join_norms", "scale"}), call.stream());
}

// What GradScaler.update does, queued; found_inf: besides what is found there.
void update_scale(const py::object& scale, double growth_factor, double backoff_factor,
                  double growth_interval, bool found_inf, std::uintptr_t stream) {
  DeviceCall call(stream);
  LossScale* const at = loss_scale(call, scale, {"update_scale", "scale"});
  update_scale_on_device({growth_factor, backoff_factor, growth_interval}, found_inf, at, call.stream());
}

class CudaPlan {
 public:
  CudaPlan(const std::string& rule, const py::list& params, const py::list& states, const py::object& emas,
           const py::list& exponents, const py::object& remainders, bool by_chance, const py::object& shadows,
           const py::object& parts)
      : CudaPlan(DeviceCall(0), rule, params, states, emas, {exponents, remainders, shadows, by_chance},
                 parts) {}

  // max_norm: None, or what to scale the gradients to first; then `norm` receives their norm and `scale` the
  // factor, each one float64 on the device. Without a max_norm a given `scale` is one more factor of all
  // gradients, or where it is a vector one for each tensor.
  void step(const py::list& grads, const Arrays::Coefs& coefs, py::object rows, std::uintptr_t stream,
            const py::object& max_norm, const py::object& norm, const py::object& scale,
            const py::object& factors) {
    DeviceCall call(stream);
    const std::vector<const void*> pointers = gradient_pointers(call, grads);
    DeviceStep step = prepared(call, "step", pointers, coefs, rows);
    step.factors = arrays_.checked_factors(call, factors);
    const ArgName scale_name{"step", "scale"};
    step.scale_each = max_norm.is_none() && !scale.is_none() && call.view(scale, scale_name).ndim == 1;
    step.grad_scale = step.scale_each ? arrays_.one_each(call, scale, scale_name)
                                      : limited(call, "step", pointers, max_norm, norm, scale);
    plan_.step_from_host(step, Index(coefs.size()), call.stream());
    ++steps_;
  }

  // Leaves the norms of directions, then of parameters, in `out`: float64 on the device, a row of each. The
  // rest is as in `step`.
  void measure(const py::list& grads, const Arrays::Coefs& coefs, py::object rows, const py::object& out,
               std::uintptr_t stream, const py::object& max_norm, const py::object& norm,
               const py::object& scale) {
    DeviceCall call(stream);
    const std::vector<const void*> pointers = gradient_pointers(call, grads);
    DeviceStep step = prepared(call, "measure", pointers, coefs, rows);
    double* const to = arrays_.table(call, out, {"measure", "out"}, 2, arrays_.tensors().size());
    step.grad_scale = limited(call, "measure", pointers, max_norm, norm, scale);
    plan_.measure_from_host(step, Index(coefs.size()), to, call.stream());
  }

  void check(const py::list& grads) const {
    DeviceCall call(0);
    gradient_pointers(call, grads);
  }

  // Makes room for steps that the caller captures, and loads their kernels.
  void prepare_capture(std::uintptr_t stream) {
    DeviceCall call(stream);
    begin(call);
    if (is_capturing(call.stream()))
      throw std::runtime_error("prepare_capture: the stream is being captured, call it before");
    plan_.prepare_capture(arrays_.width(), call.stream());
  }

  // `step` with the numbers of the last `advance` before each replay, on a stream that is being captured.
  void capture(const py::list& grads, std::uintptr_t stream, const py::object& max_norm,
               const py::object& norm, const py::object& scale) {
    DeviceCall call(stream);
    const std::vector<const void*> pointers = gradient_pointers(call, grads);
    DeviceStep step = {};
    step.grad_scale = limited(call, "step", pointers, max_norm, norm, scale);
    plan_.capture_step(pointers.data(), step, call.stream());
  }

  // The numbers of the next replay, queued on the stream.
  void advance(const Arrays::Coefs& coefs, py::object rows, std::uintptr_t stream) {
    DeviceCall call(stream);
    begin(call);
    const std::int32_t* row_of = arrays_.checked_rows(coefs, rows);
    plan_.advance_captured(coefs.data(), coefs.shape(0), row_of, call.stream());
  }

  // Leaves the norm of all gradients in `out`, one float64 on the device.
  void norm(const py::list& grads, double ord, const py::object& out, std::uintptr_t stream) {
    const Monoid monoid = norm_monoid(ord);
    DeviceCall call(stream);
    const std::vector<const void*> pointers = gradient_pointers(call, grads);
    double* const norm_at = number(call, out, {"norm", "out"});
    plan_.norm_from_host(monoid, {pointers.data(), INFINITY, norm_at}, call.stream());
  }

  // Leaves the norm of each gradient, of each parameter, in `out`: float64 on the device, one for each.
  void norms(const py::list& grads, const py::object& out, std::uintptr_t stream) {
    DeviceCall call(stream);
    const std::vector<const void*> pointers = gradient_pointers(call, grads);
    plan_.norms_from_host(pointers.data(), arrays_.one_each(call, out, {"norms", "out"}), call.stream());
  }

  void param_norms(const py::object& out, std::uintptr_t stream) {
    DeviceCall call(stream);
    begin(call);
    plan_.param_norms(arrays_.one_each(call, out, {"param_norms", "out"}), call.stream());
  }

  Index steps() const { return steps_; }
  NativeDevicePlan native() const { return {&plan_, &arrays_.tensors(), arrays_.width()}; }

  // For the attempts of several plans.
  DevicePlan& device_plan() { return plan_; }
  const Arrays& arrays() const { return arrays_; }

  // The call is on the parameters' device.
  void begin(DeviceCall& call) const {
    for (std::size_t i = 0; i < arrays_.params().size(); ++i)
      call.begin_with(arrays_.params()[i], {"step", "params", Index(i)});
  }

  // The gradients must be there too.
  std::vector<const void*> gradient_pointers(DeviceCall& call, const py::list& grads) const {
    begin(call);
    return arrays_.gradient_pointers(call, py::tuple(grads));
  }

  // These numbers travel with the launch, so a graph would repeat those that it has seen.
  static void require_running(const DeviceCall& call, const char* what) {
    if (is_capturing(call.stream()))
      throw std::runtime_error(
          std::string(what) +
          ": the stream is being captured into a CUDA graph, which would repeat this step's "
          "learning rate and bias corrections; call the optimizer's prepare_capture() before the capture and "
          "advance() before each replay, or let fastopt.compile capture the training step");
  }

 private:
  CudaPlan(DeviceCall&& call, const std::string& rule, const py::list& params, const py::list& states,
           const py::object& emas, const PackedArrays& packed, const py::object& parts)
      : arrays_(call, rule, params, states, emas, packed, parts), plan_(arrays_.rule(), arrays_.tensors()) {}

  DeviceStep prepared(const DeviceCall& call, const char* what, const std::vector<const void*>& pointers,
                      const Arrays::Coefs& coefs, py::object& rows) const {
    const std::int32_t* row_of = arrays_.checked_rows(coefs, rows);
    require_running(call, what);
    DeviceStep step{pointers.data(), coefs.data(), arrays_.width()};
    step.rows = row_of;
    return step;
  }

  // Where the factor of all gradients is, null without; with a max_norm it is computed first.
  const double* limited(DeviceCall& call, const char* what, const std::vector<const void*>& pointers,
                        const py::object& max_norm, const py::object& norm, const py::object& scale) {
    double* const scale_at = number(call, scale, {what, "scale"});
    if (!max_norm.is_none()) {
      double* const norm_at = number(call, norm, {what, "norm"});
      plan_.norm_from_host(Monoid::sum_squares, {pointers.data(), max_norm.cast<double>(), norm_at, scale_at},
                           call.stream());
    }
    return scale_at;
  }

  Arrays arrays_;
  DevicePlan plan_;
  Index steps_ = 0;  // queued; changed with the GIL alone
};

// Of each plan's.
std::vector<std::vector<const void*>> gradient_pointers(DeviceCall& call, const std::vector<CudaPlan*>& plans,
                                                        const py::list& grads) {
  std::vector<std::vector<const void*>> pointers;
  for (std::size_t i = 0; i < plans.size(); ++i)
    pointers.push_back(plans[i]->gradient_pointers(call, grads[i].cast<py::list>()));
  return pointers;
}

std::vector<CudaPlan*> all_plans(const py::list& plans) {
  std::vector<CudaPlan*> all;
  for (const py::handle plan : plans) all.push_back(&plan.cast<CudaPlan&>());
  return all;
}

// Divides the gradients of some plans by a scale; a refused call has changed none. found: one float64.
void unscale(const py::list& plans_, const py::list& grads, const py::object& scale, const py::object& found,
             std::uintptr_t stream) {
  DeviceCall call(stream);
  const std::vector<CudaPlan*> plans = all_plans(plans_);
  const auto pointers = gradient_pointers(call, plans, grads);
  LossScale* const scale_at = loss_scale(call, scale, {"unscale", "scale"});
  double* const found_at = number(call, found, {"unscale", "found"});
  if (!found_at) throw py::type_error("unscale: found is None, expected one float64");
  std::vector<DevicePlan*> native;
  for (CudaPlan* plan : plans) native.push_back(&plan->device_plan());
  DeviceAttempts::unscale(native, pointers, scale_at, found_at, call.stream());
}

// DeviceAttempts of plans; a list has an entry for each of them.
class CudaAttempts {
 public:
  CudaAttempts(const py::list& plans, std::uintptr_t stream) : held_(plans), plans_(all_plans(plans)) {
    DeviceCall call(stream);
    begin(call);
    if (is_capturing(call.stream()))
      throw std::runtime_error("prepare_capture: the stream is being captured, call it before");
    std::vector<DevicePlan*> native;
    std::vector<Index> widths;
    for (CudaPlan* plan : plans_) {
      native.push_back(&plan->device_plan());
      widths.push_back(plan->arrays().width());
    }
    attempts_.emplace(std::move(native), widths, call.stream());
  }

  // The coefficients of the next attempt for `counts` numbers of steps taken before it, from `first` on: of
  // each plan so many blocks of rows, and which row is whose. With may_travel that attempt is queued by
  // `step`.
  void advance(const std::vector<Arrays::Coefs>& coefs, const py::list& sets, Index counts, Index first,
               bool may_travel, std::uintptr_t stream) {
    DeviceCall call(stream);
    begin(call);
    CudaPlan::require_running(call, "step");
    if (coefs.size() != plans_.size() || sets.size() != plans_.size() || counts < 1 ||
        counts > DevicePlan::kMostAhead)
      throw py::value_error("Attempts: coefficients do not fit the plans");
    std::vector<Ahead> ahead;
    std::vector<py::object> held;  // rows
    for (std::size_t i = 0; i < plans_.size(); ++i) {
      held.push_back(sets[i]);
      const std::int32_t* row_of = plans_[i]->arrays().checked_rows(coefs[i], held.back());
      const Index n_rows = coefs[i].shape(0) / counts;
      if (n_rows > Index(plans_[i]->arrays().tensors().size()) || n_rows * counts != coefs[i].shape(0))
        throw py::value_error("Attempts: coefs[" + std::to_string(i) + "] has " +
                              std::to_string(coefs[i].shape(0)) + " rows");
      ahead.push_back({coefs[i].data(), n_rows, row_of});
    }
    attempts_->advance(ahead, counts, first, may_travel, call.stream());
  }

  // As CudaPlan::step of all plans where all gradients are finite; nothing otherwise. They are divided by the
  // scale, three float64 on the device; `norm` and `taken` receive the norm then, or that before, and
  // whether. found: what `unscale` has left of gradients that it has divided by the scale already. scales:
  // for each plan what its gradients are multiplied by, a number or one for each tensor, if not that.
  void step(const py::list& grads, const py::object& max_norm, const py::object& scale,
            const py::object& norm_before, const py::object& norm, const py::object& taken,
            const py::object& found, const py::list& scales, std::uintptr_t stream) {
    DeviceCall call(stream);
    const auto pointers = gradient_pointers(call, plans_, grads);
    Attempt attempt{max_norm.cast<std::optional<double>>(), loss_scale(call, scale, {"step", "scale"})};
    attempt.norm_before = number(call, norm_before, {"step", "norm_before"});
    attempt.norm = number(call, norm, {"step", "norm"});
    attempt.found = number(call, found, {"step", "found"});
    for (std::size_t i = 0; i < scales.size(); ++i) {
      const Index tensors = Index(plans_.at(i)->arrays().tensors().size());
      const bool each = call.view(scales[i], {"step", "scales", Index(i)}).size == tensors;
      attempt.scales.push_back(
          {numbers(call, scales[i], {"step", "scales", Index(i)}, each ? tensors : 1), each});
    }
    if (!taken.is_none()) {
      const DeviceView view = call.any_view(taken, {"step", "taken"});
      if (view.kind != 'b' || view.size != 1) throw py::type_error("step: taken is not one bool");
      attempt.taken = static_cast<bool*>(view.data);
    }
    attempts_->step(pointers, attempt, call.stream());
  }

  // How many attempts the device has made, and how many steps it has taken, as far as it has come.
  py::tuple counts() const {
    const AttemptCounts counts = attempts_->counts();
    return py::make_tuple(counts.made, counts.taken);
  }

  // The same when all that is queued is done.
  py::tuple settle() const {
    DeviceCall call(0);
    begin(call);
    {
      const ReleasedGil release;
      synchronize_device();
    }
    return counts();
  }

 private:
  void begin(DeviceCall& call) const {
    for (const CudaPlan* plan : plans_) plan->begin(call);
  }

  py::list held_;
  std::vector<CudaPlan*> plans_;
  std::optional<DeviceAttempts> attempts_;
};

}  // namespace

NativeDevicePlan native_device_plan(py::handle plan) { return plan.cast<CudaPlan&>().native(); }

void bind_cuda_step(py::module_& m) {
  m.def("join_norms", &join_norms, py::arg("norms"), py::arg("max_norm"), py::arg("norm"), py::arg("scale"),
        py::arg("stream"));
  m.def("update_scale", &update_scale, py::arg("scale"), py::arg("growth_factor"), py::arg("backoff_factor"),
        py::arg("growth_interval"), py::arg("found_inf"), py::arg("stream"));
  m.def("unscale", &unscale, py::arg("plans"), py::arg("grads"), py::arg("scale"), py::arg("found"),
        py::arg("stream"));
  py::class_<CudaAttempts>(m, "Attempts", "Steps that the device takes where all gradients are finite.")
      .def(py::init<py::list, std::uintptr_t>(), py::arg("plans"), py::arg("stream"))
      .def("advance", &CudaAttempts::advance, py::arg("coefs"), py::arg("sets"), py::arg("counts"),
           py::arg("first"), py::arg("may_travel"), py::arg("stream"))
      .def("step", &CudaAttempts::step, py::arg("grads"), py::arg("max_norm"), py::arg("scale"),
           py::arg("norm_before"), py::arg("norm"), py::arg("taken"), py::arg("found"), py::arg("scales"),
           py::arg("stream"))
      .def("counts", &CudaAttempts::counts)
      .def("settle", &CudaAttempts::settle)
      .def_property_readonly_static("most_ahead", [](const py::object&) { return DevicePlan::kMostAhead; });
  py::class_<CudaPlan>(m, "StepPlan", "Parameters, state arrays and averages of one rule in device memory.")
      .def(py::init<const std::string&, py::list, py::list, py::object, py::list, py::object, bool,
                    py::object, py::object>(),
           py::arg("rule"), py::arg("params"), py::arg("states"), py::arg("emas") = py::none(),
           py::arg("exponents") = py::list(), py::arg("remainders") = py::none(),
           py::arg("by_chance") = false, py::arg("shadows") = py::none(), py::arg("parts") = py::none())
      .def("step", &CudaPlan::step, py::arg("grads"), py::arg("coefs"), py::arg("sets"), py::arg("stream"),
           py::arg("max_norm") = py::none(), py::arg("norm") = py::none(), py::arg("scale") = py::none(),
           py::arg("factors") = py::none())
      .def("measure", &CudaPlan::measure, py::arg("grads"), py::arg("coefs"), py::arg("sets"), py::arg("out"),
           py::arg("stream"), py::arg("max_norm") = py::none(), py::arg("norm") = py::none(),
           py::arg("scale") = py::none())
      .def("check", &CudaPlan::check, py::arg("grads"))
      .def("prepare_capture", &CudaPlan::prepare_capture, py::arg("stream"))
      .def("capture", &CudaPlan::capture, py::arg("grads"), py::arg("stream"),
           py::arg("max_norm") = py::none(), py::arg("norm") = py::none(), py::arg("scale") = py::none())
      .def("advance", &CudaPlan::advance, py::arg("coefs"), py::arg("sets"), py::arg("stream"))
      .def("norm", &CudaPlan::norm, py::arg("grads"), py::arg("ord"), py::arg("out"), py::arg("stream"))
      .def("norms", &CudaPlan::norms, py::arg("grads"), py::arg("out"), py::arg("stream"))
      .def("param_norms", &CudaPlan::param_norms, py::arg("out"), py::arg("stream"))
      .def_property_readonly("steps", &CudaPlan::steps);
}

}  // namespace fastopt
