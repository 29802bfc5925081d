// What Program is in _core and in _cuda: the checks of layers, plans, losses and of the arguments of runs.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/formulas.hpp"
#include "core/plan.hpp"
#include "core/program_parts.hpp"

namespace fastopt {

[[noreturn]] inline void refuse_program(const std::string& text) {
  throw py::value_error("Program: " + text);
}

template <class Enum>
Enum one_of(const char* what, const std::string& name, std::initializer_list<const char*> names) {
  for (std::size_t i = 0; i < names.size(); ++i)
    if (name == names.begin()[i]) return Enum(i);
  refuse_program(std::string(what) + " is '" + name + "'");
}

// Classes of a target: one dense int64 for each row.
struct ClassesView {
  const Index* data;
  Index size;
  int ndim;
};

// The layers' arrays, plans and loss of a program. Call: how an argument is looked at. Its `view` returns a
// Call::View, which is an ArrayView; `plain` the same of a dense array of float32 or float64 and nothing of
// any other object; `classes` a ClassesView, or nothing; `plan` a Call::Plan, with the members `tensors`, a
// pointer to those of a StepPlan, and `width`.
template <class Call>
class ProgramArrays {
 public:
  using View = typename Call::View;
  using Coefs = py::array_t<double, py::array::c_style>;
  using Order = py::array_t<Index, py::array::c_style>;

  struct Plan {
    typename Call::Plan native;
    Index first, rows;
    std::vector<std::int32_t> sets;
  };

  // layers: (kind, in, out, weight, bias, activation, params, dropout, norm), a weight or bias being None or
  // (array, gradient or None, plan or -1, tensor of the plan, earlier uses), norm None or of a batch
  // normalisation (eps, momentum, running mean and variance and number of batches, or three times None).
  // loss: (kind, params, reduction, class weights or None, ignore_index, label_smoothing); its kind is a
  // formula's name, cross_entropy or nll. plans: (StepPlan, sets of coefficients, set of each tensor or
  // None).
  ProgramArrays(Call& call, const std::string& dtype, const py::list& layers, const py::tuple& loss,
                const py::list& plans)
      : dtype_(one_of<DType>("dtype", dtype, {"float32", "float64"})),
        held_(py::make_tuple(py::tuple(layers), loss, py::tuple(plans))) {
    for (const py::handle entry : plans) {
      plans_.push_back(read_plan(call, entry.cast<py::tuple>(), coefs_width_));
      coefs_width_ += plans_.back().rows * plans_.back().native.width;
    }
    for (const py::handle entry : layers) {
      layers_.push_back(read_layer(call, entry.cast<py::tuple>(), Index(layers_.size())));
      const ProgramLayer& layer = layers_.back();
      if (layers_.size() > 1 && layers_.end()[-2].out != layer.in)
        refuse_program("layers[" + std::to_string(layers_.size() - 1) + "] takes " +
                       std::to_string(layer.in) + " columns, the layer before gives " +
                       std::to_string(layers_.end()[-2].out));
      dropouts_ += layer.dropout;
      batch_norms_ += layer.kind == LayerKind::batch_norm;
    }
    if (layers_.empty()) refuse_program("layers is empty");
    parameters_ = Extents(std::move(extents_), "Program");
    loss_ = read_loss(call, loss);
  }

  DType dtype() const { return dtype_; }
  const std::vector<ProgramLayer>& layers() const { return layers_; }
  const std::vector<Plan>& plans() const { return plans_; }
  const ProgramLoss& loss() const { return loss_; }
  Index in() const { return layers_.front().in; }
  Index out() const { return layers_.back().out; }

  // Numbers of the program's dtype that no step changes.
  View data(Call& call, const py::object& object, const ArgName& name) const {
    const View view = call.view(object, name);
    require_dense(view, name, false);
    if (view.dtype != dtype_)
      throw py::type_error(name.prefix() + " is " + dtype_name(view.dtype) + ", the model is " +
                           dtype_name(dtype_));
    const Extent reach = extent(view, name);
    if (const Extent* hit = parameters_.overlapping(reach.begin, reach.end))
      throw py::value_error(name.prefix() + " overlaps " + hit->name.text() + " in memory; pass a copy");
    return view;
  }

  // How many rows an input has.
  Index rows_of(const View& x) const {
    const Index rows = in() ? x.size / in() : 0;
    if (rows * in() != x.size) refuse_program("x has " + std::to_string(x.size) + " elements");
    return rows;
  }

  // x, target and how many rows make a sample.
  void read_data(Call& call, const char* name, const py::object& x_, const py::object& target_,
                 Index& samples, ProgramRun& run) const {
    const View x = data(call, x_, {name, "x"});
    samples = x.ndim ? x.shape[0] : 0;
    run.x = x.data;
    run.repeat = samples && in() ? x.size / samples / in() : 1;
    const Index rows = samples * run.repeat;
    if (rows * in() != x.size) refuse_program("x has " + std::to_string(x.size) + " elements");
    const std::optional<ClassesView> classes = call.classes(target_, {name, "target"});
    run.classes = classes.has_value();
    if (classes) {
      run.target = classes->data;
      if (classes->size != rows || loss_.kind == LossKind::elementwise)
        refuse_program("target has " + std::to_string(classes->size) + " classes");
    } else {
      const View target = data(call, target_, {name, "target"});
      run.target = target.data;
      if (target.size != rows * out() || loss_.kind == LossKind::nll)
        refuse_program("target has " + std::to_string(target.size) + " elements");
    }
  }

  // What the steps are over; `order` becomes what run.order points into.
  static void read_steps(Index samples, const py::object& order_, Index begin, Index end, Index batch,
                         Index steps, Order& order, ProgramRun& run) {
    if (begin < 0 || end > samples || batch < 1 || steps < 1 || begin + (steps - 1) * batch >= end)
      refuse_program("steps are not within the samples");
    if (!order_.is_none()) {
      order = order_.cast<Order>();
      if (order.size() != samples) refuse_program("order has " + std::to_string(order.size()) + " entries");
      run.order = order.data();
      const Index last = std::min(end, begin + steps * batch);
      if (std::any_of(run.order + begin, run.order + last, [&](Index i) { return i < 0 || i >= samples; }))
        refuse_program("order is out of range");
    }
    run.begin = begin;
    run.end = end;
    run.batch = batch;
    run.steps = steps;
  }

  // The loss's factors, after read_steps.
  void read_factors(Call& call, const char* name, const py::object& weight, const py::object& param,
                    bool gather_weight, Index samples, ProgramRun& run) const {
    const Index outputs = std::min(run.batch, run.end - run.begin) * run.repeat * out();
    run.gather_weight = gather_weight && !weight.is_none();
    run.weight =
        factor(call, weight, {name, "weight"}, gather_weight ? samples * run.repeat * out() : outputs);
    run.param = factor(call, param, {name, "pos_weight"}, outputs);
  }

  // What stays in host memory, after read_steps.
  void read_numbers(const std::vector<double>& rates, std::uint64_t seed, std::uint64_t offset,
                    const Coefs& coefs, double max_norm, ProgramRun& run) const {
    if (Index(rates.size()) != dropouts_ + batch_norms_)
      refuse_program("rates has " + std::to_string(rates.size()));
    run.rates = rates.data();
    run.seed = seed;
    run.offset = offset;
    if (coefs.size() != run.steps * coefs_width_)
      refuse_program("coefs has " + std::to_string(coefs.size()) + " entries");
    run.coefs = coefs.data();
    run.max_norm = max_norm;
  }

  // One step over dense arrays of the right dtypes and shapes, without masks, factors of the loss or a limit
  // to the norm; nothing where the arguments are anything else, mistakes among them.
  std::optional<ProgramRun> plain_run(Call& call, py::handle x_, py::handle target_,
                                      const Coefs& coefs) const {
    const std::optional<ClassesView> classes = call.classes(target_, {"step", "target"});
    const std::optional<View> x = call.plain(x_);
    const bool by_element = loss_.kind == LossKind::elementwise;
    if (classes.has_value() == by_element || loss_.probabilities || !is_batch(x, in())) return std::nullopt;
    const Index rows = x->shape[0];
    ProgramRun run{};
    run.x = x->data;
    run.classes = classes.has_value();
    if (classes) {
      run.target = classes->data;
      if (classes->ndim != 1 || classes->size != rows) return std::nullopt;
    } else {
      const std::optional<View> target = call.plain(target_);
      if (!is_batch(target, out()) || target->shape[0] != rows) return std::nullopt;
      run.target = target->data;
    }
    run.repeat = run.steps = 1;
    run.end = run.batch = rows;
    run.coefs = coefs.data();
    run.max_norm = std::numeric_limits<double>::infinity();
    if (dropouts_ + batch_norms_ > 0 || coefs.size() != coefs_width_) return std::nullopt;
    return run;
  }

  // Raises what has stopped a run.
  void require_whole(const std::string& call, const ProgramStop& stop) const {
    if (stop.reason == ProgramStop::bad_class) bad_class(call, stop.at, Index(stop.value));
    if (stop.reason == ProgramStop::no_probability)
      throw py::value_error(call + ": output[" + std::to_string(stop.at / out()) + ", " +
                            std::to_string(stop.at % out()) + "] of the model is " +
                            std::string(py::str(py::float_(stop.value))) +
                            ", expected a probability in [0, 1]");
  }
  [[noreturn]] void bad_class(const std::string& call, Index at, Index value) const {
    throw py::value_error(call + ": target[" + std::to_string(at) + "] is " + std::to_string(value) +
                          ", input has " + std::to_string(out()) + " classes");
  }

 private:
  // Rows of so many numbers, which no step changes.
  bool is_batch(const std::optional<View>& a, Index columns) const {
    if (!a || a->dtype != dtype_ || a->ndim != 2 || a->shape[1] != columns || a->size == 0) return false;
    const char* const begin = static_cast<const char*>(a->data);
    return !parameters_.overlapping(begin, begin + a->size * item_bytes(dtype_));
  }

  const void* factor(Call& call, const py::object& object, const ArgName& name, Index size) const {
    if (object.is_none()) return nullptr;
    const View view = data(call, object, name);
    if (view.size < size || loss_.kind != LossKind::elementwise)
      refuse_program(name.text() + " has " + std::to_string(view.size) + " elements");
    return view.data;
  }

  static Plan read_plan(Call& call, const py::tuple& entry, Index first) {
    Plan plan{call.plan(entry[0]), first, entry[1].cast<Index>(), {}};
    if (!entry[2].is_none()) {
      const auto sets = entry[2].cast<py::array_t<std::int32_t, py::array::c_style>>();
      plan.sets.assign(sets.data(), sets.data() + sets.size());
      if (plan.sets.size() != plan.native.tensors->size() ||
          std::any_of(plan.sets.begin(), plan.sets.end(), [&](Index s) { return s < 0 || s >= plan.rows; }))
        refuse_program("sets do not fit the plan");
    }
    return plan;
  }

  ProgramLayer read_layer(Call& call, const py::tuple& entry, Index l) {
    ProgramLayer layer;
    layer.kind = one_of<LayerKind>("kind", entry[0].cast<std::string>(),
                                   {"pointwise", "linear", "softmax", "log_softmax", "batch_norm"});
    layer.in = entry[1].cast<Index>();
    layer.out = entry[2].cast<Index>();
    const bool linear = layer.kind == LayerKind::linear, norm = layer.kind == LayerKind::batch_norm;
    if ((!norm && linear == entry[3].is_none()) || (!linear && layer.in != layer.out) ||
        norm == entry[8].is_none())
      refuse_program("layers[" + std::to_string(l) + "] has no weight, or one too many");
    const std::vector<Index> shape = norm ? std::vector{layer.out} : std::vector{layer.out, layer.in};
    layer.weight = read_parameter(call, entry[3], {"Program", "weight", l}, shape);
    layer.bias = read_parameter(call, entry[4], {"Program", "bias", l}, {layer.out});
    if (const std::string name = entry[5].cast<std::string>(); !name.empty()) {
      const Chosen chosen = choose("activation", kActivations, name, entry[6].cast<py::tuple>());
      layer.activation = chosen.index;
      std::copy(std::begin(chosen.params), std::end(chosen.params), layer.params);
      layer.needs_x = chosen.info.grad_needs_x;
      layer.needs_y = chosen.info.grad_needs_y;
    }
    layer.dropout = entry[7].cast<bool>();
    if (norm) layer.norm = read_norm(call, entry[8].cast<py::tuple>(), l, layer.out);
    return layer;
  }

  ProgramNorm read_norm(Call& call, const py::tuple& entry, Index l, Index channels) {
    ProgramNorm norm{entry[0].cast<double>(), entry[1].cast<double>()};
    if (entry[2].is_none()) return norm;
    const auto running = [&](const py::object& object, const ArgName& name) {
      const View view = written(call, object, name);
      if (view.dtype != dtype_ || view.ndim != 1 || view.size != channels)
        refuse_program(name.text() + " is " + dtype_name(view.dtype) + " of shape " + shape_text(view));
      extents_.push_back(extent(view, name));
      return view.data;
    };
    norm.running_mean = running(entry[2], {"Program", "running_mean", l});
    norm.running_var = running(entry[3], {"Program", "running_var", l});
    const std::optional<ClassesView> batches = call.classes(entry[4], {"Program", "num_batches_tracked", l});
    if (!batches || batches->size != 1) refuse_program("num_batches_tracked is not one int64");
    norm.batches = const_cast<Index*>(batches->data);
    return norm;
  }

  static View written(Call& call, const py::object& object, const ArgName& name) {
    const View view = call.view(object, name);
    require_dense(view, name, true);
    return view;
  }

  ProgramParameter read_parameter(Call& call, const py::handle& entry, const ArgName& name,
                                  const std::vector<Index>& shape) {
    ProgramParameter p;
    if (entry.is_none()) return p;
    const py::tuple parts = entry.cast<py::tuple>();
    const View view = written(call, parts[0], name);
    if (view.dtype != dtype_ || !std::equal(view.shape, view.shape + view.ndim, shape.begin(), shape.end()))
      refuse_program(name.text() + " is " + dtype_name(view.dtype) + " of shape " + shape_text(view));
    p.data = view.data;
    p.plan = parts[2].cast<Index>();
    p.tensor = parts[3].cast<Index>();
    p.use = parts[4].cast<Index>();
    if (p.use == 0) extents_.push_back(extent(view, name));
    if (!parts[1].is_none()) {
      const ArgName grad_name{"Program", "grad", name.index};
      const View grad = written(call, parts[1], grad_name);
      require_same_dtype(grad, grad_name, view, name);
      require_same_shape(grad, grad_name, view, name);
      p.grad = grad.data;
      if (p.use == 0) extents_.push_back(extent(grad, grad_name));
    }
    if (p.plan < 0) return p;
    if (p.plan >= Index(plans_.size())) refuse_program(name.text() + " is of no plan");
    const std::vector<PlanTensor>& tensors = *plans_[std::size_t(p.plan)].native.tensors;
    if (p.tensor < 0 || p.tensor >= Index(tensors.size()) || tensors[std::size_t(p.tensor)].p != p.data)
      refuse_program(name.text() + " is not the plan's tensor");
    return p;
  }

  ProgramLoss read_loss(Call& call, const py::tuple& entry) const {
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
      const ArgName weight_name{"Program", "weight"};
      const View weight = call.view(entry[3], weight_name);
      require_dense(weight, weight_name, false);
      if (weight.dtype != dtype_ || weight.size != out())
        refuse_program("weight has shape " + shape_text(weight));
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
  std::vector<Plan> plans_;
  std::vector<ProgramLayer> layers_;
  ProgramLoss loss_;
  Index dropouts_ = 0, batch_norms_ = 0, coefs_width_ = 0;
};

}  // namespace fastopt
