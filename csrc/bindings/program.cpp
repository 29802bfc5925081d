// Program for Python: checks layers, plans and arrays, then runs many steps in one call without the GIL.
#include "core/program.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "bindings/arrays.hpp"
#include "bindings/formulas.hpp"
#include "bindings/modules.hpp"
#include "core/losses.hpp"

namespace fastopt {
namespace {

using Classes = py::array_t<Index, py::array::c_style>;

[[noreturn]] void refuse(const std::string& text) { throw py::value_error("Program: " + text); }

template <class Enum>
Enum one_of(const char* what, const std::string& name, std::initializer_list<const char*> names) {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (name == names.begin()[i]) return Enum(i);
  refuse(std::string(what) + " is '" + name + "'");
}

class PyProgram {
 public:
  // layers: (kind, in, out, weight, bias, activation, params, dropout), a weight or bias being None or
  // (array, gradient or None, plan or -1, tensor of the plan, earlier uses). loss: (kind, params, reduction,
  // class weights or None, ignore_index, label_smoothing); its kind is a formula's name, cross_entropy or
  // nll. plans: (StepPlan, sets of coefficients, set of each tensor or None).
  PyProgram(const std::string& dtype, bool bf16, py::list layers, py::tuple loss, py::list plans)
      : dtype_(one_of<DType>("dtype", dtype, {"float32", "float64"})),
        held_(py::make_tuple(py::tuple(layers), loss, py::tuple(plans))) {
    std::vector<ProgramPlan> native_plans;
    Index first = 0;
    for (const py::handle entry : plans) {
      native_plans.push_back(read_plan(entry.cast<py::tuple>(), first));
      first += native_plans.back().rows * native_plans.back().width;
    }
    std::vector<ProgramLayer> native_layers;
    for (const py::handle entry : layers) {
      native_layers.push_back(read_layer(entry.cast<py::tuple>(), Index(native_layers.size()), native_plans));
      const ProgramLayer& layer = native_layers.back();
      if (native_layers.size() > 1 && native_layers.end()[-2].out != layer.in)
        refuse("layers[" + std::to_string(native_layers.size() - 1) + "] takes " + std::to_string(layer.in) +
               " columns, the layer before gives " + std::to_string(native_layers.end()[-2].out));
    }
    if (native_layers.empty()) refuse("layers is empty");
    const Index classes = native_layers.back().out;
    parameters_ = Extents(std::move(extents_), "Program");
    program_ = std::make_unique<Program>(dtype_, bf16, std::move(native_layers), read_loss(loss, classes),
                                         std::move(native_plans));
  }

  void reserve(Index rows) {
    const std::lock_guard<std::mutex> lock(mutex_);
    program_->reserve(rows);
  }

  // Raises for a class out of range, before any step.
  void check_classes(const std::string& call, const Classes& target) const {
    const Index at =
        first_bad_class(target.data(), target.size(), program_->out(), program_->loss().ignore_index);
    if (at < target.size()) bad_class(call, at, target.data()[at]);
  }

  py::tuple run(const std::string& call, const py::object& x_, const py::object& target_,
                const py::object& order_, Index begin, Index end, Index batch, Index steps,
                const py::object& weight_, const py::object& param_, const std::vector<double>& rates,
                std::uint64_t seed, std::uint64_t offset,
                const py::array_t<double, py::array::c_style>& coefs, double max_norm) {
    const char* const name = call.c_str();
    const Index samples = py::len(x_);
    ProgramRun run{};
    const ArrayView x = data(x_, {name, "x"});
    run.x = x.data;
    run.repeat = samples && program_->in() ? x.size / samples / program_->in() : 1;
    const Index rows = samples * run.repeat;
    if (rows * program_->in() != x.size) refuse("x has " + std::to_string(x.size) + " elements");
    Classes classes;
    run.classes = py::isinstance<Classes>(target_);
    if (run.classes) {
      classes = py::reinterpret_borrow<Classes>(target_);
      run.target = classes.data();
      if (classes.size() != rows || program_->loss().kind == LossKind::elementwise)
        refuse("target has " + std::to_string(classes.size()) + " classes");
    } else {
      const ArrayView target = data(target_, {name, "target"});
      run.target = target.data;
      if (target.size != rows * program_->out() || program_->loss().kind == LossKind::nll)
        refuse("target has " + std::to_string(target.size) + " elements");
    }
    py::array_t<Index, py::array::c_style> order;
    if (begin < 0 || end > samples || batch < 1 || steps < 1 || begin + (steps - 1) * batch >= end)
      refuse("steps are not within the samples");
    if (!order_.is_none()) {
      order = order_.cast<py::array_t<Index, py::array::c_style>>();
      if (order.size() != samples) refuse("order has " + std::to_string(order.size()) + " entries");
      run.order = order.data();
      const Index last = std::min(end, begin + steps * batch);
      if (std::any_of(run.order + begin, run.order + last, [&](Index i) { return i < 0 || i >= samples; }))
        refuse("order is out of range");
    }
    run.begin = begin;
    run.end = end;
    run.batch = batch;
    run.steps = steps;
    const Index outputs = std::min(batch, end - begin) * run.repeat * program_->out();
    run.weight = factor(weight_, {name, "weight"}, outputs);
    run.param = factor(param_, {name, "pos_weight"}, outputs);
    if (Index(rates.size()) != program_->dropouts()) refuse("rates has " + std::to_string(rates.size()));
    run.rates = rates.data();
    run.seed = seed;
    run.offset = offset;
    if (coefs.size() != steps * program_->coefs_width())
      refuse("coefs has " + std::to_string(coefs.size()) + " entries");
    run.coefs = coefs.data();
    run.max_norm = max_norm;
    py::array_t<double> losses(steps);
    run.losses = losses.mutable_data();
    ProgramStop stop;
    {
      const py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      stop = program_->run(run);
    }
    if (stop.reason == ProgramStop::bad_class) bad_class(call, stop.at, Index(stop.value));
    if (stop.reason == ProgramStop::no_probability)
      throw py::value_error(call + ": output[" + std::to_string(stop.at / program_->out()) + ", " +
                            std::to_string(stop.at % program_->out()) + "] of the model is " +
                            std::string(py::str(py::float_(stop.value))) +
                            ", expected a probability in [0, 1]");
    return py::make_tuple(losses, run.norm);
  }

  // One step over dense arrays of the right dtypes and shapes, without masks, factors of the loss or a limit
  // to the norm; None, and nothing has changed, where the arguments are anything else, mistakes among them.
  std::optional<double> step_plain(py::handle x_, py::handle target_,
                                   const py::array_t<double, py::array::c_style>& coefs) {
    const bool classes = py::isinstance<Classes>(target_);
    const bool by_element = program_->loss().kind == LossKind::elementwise;
    const std::optional<ArrayView> x = plain_view(x_);
    if (classes == by_element || program_->loss().probabilities || !is_batch(x, program_->in()))
      return std::nullopt;
    const Index rows = x->shape[0];
    ProgramRun run{};
    run.x = x->data;
    if (classes) {
      const auto target = py::reinterpret_borrow<Classes>(target_);
      run.target = target.data();
      if (target.ndim() != 1 || target.shape(0) != rows) return std::nullopt;
    } else {
      const std::optional<ArrayView> target = plain_view(target_);
      if (!is_batch(target, program_->out()) || target->shape[0] != rows) return std::nullopt;
      run.target = target->data;
    }
    run.classes = classes;
    run.repeat = run.steps = 1;
    run.end = run.batch = rows;
    run.coefs = coefs.data();
    run.max_norm = std::numeric_limits<double>::infinity();
    double loss = 0.0;
    run.losses = &loss;
    if (program_->dropouts() > 0 || coefs.size() != program_->coefs_width()) return std::nullopt;
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (program_->run(run).reason != ProgramStop::none) return std::nullopt;
    return loss;
  }

  py::array predict(const py::object& x_, Index batch) {
    const ArrayView x = data(x_, {"predict", "x"});
    const Index rows = program_->in() ? x.size / program_->in() : 0;
    if (rows * program_->in() != x.size || batch < 1) refuse("x has " + std::to_string(x.size) + " elements");
    py::array out(py::dtype(dtype_ == DType::f32 ? "float32" : "float64"),
                  std::vector<py::ssize_t>{rows, program_->out()});
    void* const to = out.mutable_data();
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    program_->predict(x.data, rows, batch, to);
    return out;
  }

  Index steps() const { return program_->steps(); }

 private:
  [[noreturn]] void bad_class(const std::string& call, Index at, Index value) const {
    throw py::value_error(call + ": target[" + std::to_string(at) + "] is " + std::to_string(value) +
                          ", input has " + std::to_string(program_->out()) + " classes");
  }

  // Rows of so many numbers, which no step changes.
  bool is_batch(const std::optional<ArrayView>& a, Index columns) const {
    if (!a || a->dtype != dtype_ || a->ndim != 2 || a->shape[1] != columns || a->size == 0) return false;
    const char* const begin = static_cast<const char*>(a->data);
    return !parameters_.overlapping(begin, begin + a->size * item_bytes(dtype_));
  }

  // Numbers of the program's dtype that no step changes.
  ArrayView data(const py::object& object, const ArgName& name) const {
    const ArrayView view = dense_input(object, name);
    if (view.dtype != dtype_)
      throw py::type_error(name.prefix() + " is " + dtype_name(view.dtype) + ", the model is " +
                           dtype_name(dtype_));
    const Extent reach = extent(view, name);
    if (const Extent* hit = parameters_.overlapping(reach.begin, reach.end))
      throw py::value_error(name.prefix() + " overlaps " + hit->name.text() + " in memory; pass a copy");
    return view;
  }

  const void* factor(const py::object& object, const ArgName& name, Index size) const {
    if (object.is_none()) return nullptr;
    const ArrayView view = data(object, name);
    if (view.size < size || program_->loss().kind != LossKind::elementwise)
      refuse(name.text() + " has " + std::to_string(view.size) + " elements");
    return view.data;
  }

  static ProgramPlan read_plan(const py::tuple& entry, Index first) {
    const NativePlan native = native_plan(entry[0]);
    ProgramPlan plan{native.plan, first, entry[1].cast<Index>(), native.width, {}};
    if (!entry[2].is_none()) {
      const auto sets = entry[2].cast<py::array_t<std::int32_t, py::array::c_style>>();
      plan.sets.assign(sets.data(), sets.data() + sets.size());
      if (plan.sets.size() != native.plan->tensors().size() ||
          std::any_of(plan.sets.begin(), plan.sets.end(), [&](Index s) { return s < 0 || s >= plan.rows; }))
        refuse("sets do not fit the plan");
    }
    return plan;
  }

  ProgramLayer read_layer(const py::tuple& entry, Index l, const std::vector<ProgramPlan>& plans) {
    ProgramLayer layer;
    layer.kind = one_of<LayerKind>("kind", entry[0].cast<std::string>(),
                                   {"pointwise", "linear", "softmax", "log_softmax"});
    layer.in = entry[1].cast<Index>();
    layer.out = entry[2].cast<Index>();
    const bool linear = layer.kind == LayerKind::linear;
    if (linear == entry[3].is_none() || (!linear && layer.in != layer.out))
      refuse("layers[" + std::to_string(l) + "] has no weight, or one too many");
    layer.weight = read_parameter(entry[3], {"Program", "weight", l}, {layer.out, layer.in}, plans);
    layer.bias = read_parameter(entry[4], {"Program", "bias", l}, {layer.out}, plans);
    if (const std::string name = entry[5].cast<std::string>(); !name.empty()) {
      const Chosen chosen = choose("activation", kActivations, name, entry[6].cast<py::tuple>());
      layer.activation = chosen.index;
      std::copy(std::begin(chosen.params), std::end(chosen.params), layer.params);
      layer.needs_x = chosen.info.grad_needs_x;
      layer.needs_y = chosen.info.grad_needs_y;
    }
    layer.dropout = entry[7].cast<bool>();
    return layer;
  }

  ProgramParameter read_parameter(const py::handle& entry, const ArgName& name,
                                  const std::vector<Index>& shape, const std::vector<ProgramPlan>& plans) {
    ProgramParameter p;
    if (entry.is_none()) return p;
    const py::tuple parts = entry.cast<py::tuple>();
    const ArrayView view = dense_output(parts[0], name);
    if (view.dtype != dtype_ || !std::equal(view.shape, view.shape + view.ndim, shape.begin(), shape.end()))
      refuse(name.text() + " is " + dtype_name(view.dtype) + " of shape " + shape_text(view));
    p.data = view.data;
    p.plan = parts[2].cast<Index>();
    p.tensor = parts[3].cast<Index>();
    p.use = parts[4].cast<Index>();
    if (p.use == 0) extents_.push_back(extent(view, name));
    if (!parts[1].is_none()) {
      const ArgName grad_name{"Program", "grad", name.index};
      const ArrayView grad = dense_output(parts[1], grad_name);
      require_same_dtype(grad, grad_name, view, name);
      require_same_shape(grad, grad_name, view, name);
      p.grad = grad.data;
      if (p.use == 0) extents_.push_back(extent(grad, grad_name));
    }
    if (p.plan < 0) return p;
    if (p.plan >= Index(plans.size())) refuse(name.text() + " is of no plan");
    const std::vector<PlanTensor>& tensors = plans[std::size_t(p.plan)].plan->tensors();
    if (p.tensor < 0 || p.tensor >= Index(tensors.size()) || tensors[std::size_t(p.tensor)].p != p.data)
      refuse(name.text() + " is not the plan's tensor");
    return p;
  }

  ProgramLoss read_loss(const py::tuple& entry, Index classes) const {
    ProgramLoss loss;
    const std::string name = entry[0].cast<std::string>();
    if (name == "cross_entropy" || name == "nll") {
      loss.kind = name == "nll" ? LossKind::nll : LossKind::cross_entropy;
    } else {
      const Chosen chosen = choose("loss", kLosses, name, entry[1].cast<py::tuple>());
      loss.formula = chosen.index;
      std::copy(std::begin(chosen.params), std::end(chosen.params), loss.params);
      loss.probabilities = name == "bce";
    }
    loss.reduction =
        one_of<Reduction>("reduction", entry[2].cast<std::string>(), {"sum", "mean", "batchmean"});
    if (!entry[3].is_none()) {
      const ArrayView weight = dense_input(entry[3], {"Program", "weight"});
      if (weight.dtype != dtype_ || weight.size != classes) refuse("weight has shape " + shape_text(weight));
      loss.class_weight = weight.data;
    }
    loss.ignore_index = entry[4].cast<Index>();
    loss.label_smoothing = entry[5].cast<double>();
    return loss;
  }

  DType dtype_;
  py::tuple held_;  // all arrays and plans stay alive as long as the program
  std::vector<Extent> extents_;
  Extents parameters_;
  std::unique_ptr<Program> program_;
  std::mutex mutex_;  // a second thread waits
};

}  // namespace

void bind_program(py::module_& m) {
  using py::arg;
  py::class_<PyProgram>(m, "Program", "A model, a loss and an optimizer's plans as one native step.")
      .def(py::init<const std::string&, bool, py::list, py::tuple, py::list>(), arg("dtype"), arg("bf16"),
           arg("layers"), arg("loss"), arg("plans"))
      .def("reserve", &PyProgram::reserve, arg("rows"))
      .def("check_classes", &PyProgram::check_classes, arg("call"), arg("target"))
      .def("run", &PyProgram::run, arg("call"), arg("x"), arg("target"), arg("order"), arg("begin"),
           arg("end"), arg("batch"), arg("steps"), arg("weight"), arg("param"), arg("rates"), arg("seed"),
           arg("offset"), arg("coefs"), arg("max_norm"))
      .def("step_plain", &PyProgram::step_plain, arg("x"), arg("target"), arg("coefs"))
      .def("predict", &PyProgram::predict, arg("x"), arg("batch"))
      .def_property_readonly("steps", &PyProgram::steps);
}

}  // namespace fastopt
