// StepPlan for Python: checks arrays once, then one native call per optimizer step.
#include "bindings/step.hpp"

#include <pybind11/stl.h>

#include "bindings/modules.hpp"

namespace fastopt {
namespace {

py::tuple words(const Names& names) {
  py::tuple result(names.size);
  for (int i = 0; i < names.size; ++i) result[std::size_t(i)] = py::str(names.at[i]);
  return result;
}

struct NumpyCall {
  using View = ArrayView;
  View view(py::handle object, const ArgName& name) const { return array_view(object, name); }
};
constexpr NumpyCall kNumpy;
using Arrays = PlanArrays<const NumpyCall>;

class Plan {
 public:
  Plan(const std::string& rule, const py::list& params, const py::list& states, const py::object& emas,
       const py::object& parts)
      : arrays_(kNumpy, rule, params, states, emas, parts), plan_(arrays_.rule(), arrays_.tensors()) {}

  void step(const py::list& grads, const Arrays::Coefs& coefs, py::object rows) {
    const py::tuple held(grads);  // keeps the arrays alive while the GIL is released
    const std::vector<const void*> pointers = gradient_pointers(held);
    const std::int32_t* row_of = arrays_.checked_rows(coefs, rows);
    const double* table = coefs.data();
    const py::gil_scoped_release release;
    plan_.step(pointers.data(), table, arrays_.width(), row_of);
  }

  StepPlan& native() { return plan_; }
  Index width() const { return arrays_.width(); }

  // Raises what step would raise for these gradients.
  void check(const py::list& grads) const { gradient_pointers(py::tuple(grads)); }

  double norm(const py::list& grads, double ord) {
    norm_monoid(ord);
    const py::tuple held(grads);
    const std::vector<const void*> pointers = gradient_pointers(held);
    const py::gil_scoped_release release;
    return plan_.norm(pointers.data(), ord);
  }

  void norms(const py::list& grads, const py::object& out) {
    const py::tuple held(grads);
    const std::vector<const void*> pointers = gradient_pointers(held);
    double* const to = arrays_.one_each(kNumpy, out, {"norms", "out"});
    const py::gil_scoped_release release;
    plan_.norms(pointers.data(), to);
  }

  void param_norms(const py::object& out) {
    double* const to = arrays_.one_each(kNumpy, out, {"param_norms", "out"});
    const py::gil_scoped_release release;
    plan_.param_norms(to);
  }

 private:
  std::vector<const void*> gradient_pointers(const py::tuple& grads) const {
    return arrays_.gradient_pointers(kNumpy, grads);
  }

  Arrays arrays_;
  StepPlan plan_;
};

}  // namespace

NativePlan native_plan(py::handle plan) {
  Plan& held = plan.cast<Plan&>();
  return {&held.native(), held.width()};
}

void bind_step(py::module_& m) {
  m.def(
      "rules",
      [] {
        py::dict result;
        for (const RuleInfo& rule : kRules) {
          py::dict entry;
          entry["states"] = words(rule.states);
          entry["coefs"] = words(rule.coefs);
          result[rule.name] = entry;
        }
        return result;
      },
      "The update rules by name, with the names of their state arrays and coefficients.");
  m.def(
      "joint_norm",
      [](const std::vector<double>& norms) { return joint_norm(norms.data(), Index(norms.size())); },
      py::arg("norms"), "The norm of arrays whose norms these are: NaN where one is NaN.");
  m.def("clip_factor", &clip_factor, py::arg("norm"), py::arg("max_norm"),
        "What scales gradients of this norm so that it is at most max_norm, as in torch.");
  py::class_<Plan>(m, "StepPlan", "Parameters, state arrays and averages of one rule, cut into chunks once.")
      .def(py::init<const std::string&, py::list, py::list, py::object, py::object>(), py::arg("rule"),
           py::arg("params"), py::arg("states"), py::arg("emas") = py::none(), py::arg("parts") = py::none())
      .def("step", &Plan::step, py::arg("grads"), py::arg("coefs"), py::arg("sets") = py::none())
      .def("check", &Plan::check, py::arg("grads"))
      .def("norm", &Plan::norm, py::arg("grads"), py::arg("ord") = 2.0)
      .def("norms", &Plan::norms, py::arg("grads"), py::arg("out"))
      .def("param_norms", &Plan::param_norms, py::arg("out"));
}

}  // namespace fastopt
