// StepPlan for Python: checks arrays once, then one native call per optimizer step.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>

#include "bindings/arrays.hpp"
#include "bindings/modules.hpp"
#include "core/plan.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
namespace {

struct RuleInfo {
  const char* name;
  Names states, coefs;
};

template <class List>
struct RuleList;
template <template <class> class... Rule>
struct RuleList<Formulas<Rule...>> {
  static constexpr RuleInfo infos[] = {{Rule<double>::name, Rule<double>::states, Rule<double>::coefs}...};
};
constexpr auto& kRules = RuleList<Rules>::infos;

int find_rule(const std::string& name) {
  std::string known;
  for (int r = 0; r < Rules::size; ++r) {
    if (name == kRules[r].name) return r;
    known += std::string(r ? ", " : "") + kRules[r].name;
  }
  throw py::value_error("StepPlan: rule is '" + name + "', expected one of " + known);
}

py::tuple words(const Names& names) {
  py::tuple result(names.size);
  for (int i = 0; i < names.size; ++i) result[std::size_t(i)] = py::str(names.at[i]);
  return result;
}

class Plan {
 public:
  Plan(const std::string& rule, py::list params, py::list states, py::object emas)
      : rule_(find_rule(rule)),
        held_(py::make_tuple(py::tuple(params), copy(states), emas.is_none() ? emas : py::tuple(emas))) {
    const RuleInfo& info = kRules[rule_];
    require_length("states", py::len(states), "the rule's states", std::size_t(info.states.size));
    std::vector<Extent> extents;
    std::vector<PlanTensor> tensors;
    for (std::size_t i = 0; i < params.size(); ++i) {
      const ArgName name{"StepPlan", "params", Index(i)};
      const ArrayView p = dense_output(params[i], name);
      extents.push_back(extent(p, name));
      tensors.push_back({p.data, {}, nullptr, p.size, p.dtype});
      views_.push_back(p);
      shapes_.emplace_back(p.shape, p.shape + p.ndim);
      views_.back().shape = shapes_.back().data();
    }
    for (int s = 0; s < info.states.size; ++s) {
      const py::list list = states[std::size_t(s)].cast<py::list>();
      require_length(info.states.at[s], list.size(), "params", params.size());
      for (std::size_t i = 0; i < params.size(); ++i) {
        const ArrayView state = companion(list[i], {"StepPlan", info.states.at[s], Index(i)}, i, extents);
        tensors[i].states[s] = state.data;
      }
    }
    if (!emas.is_none()) {
      const py::list list = emas.cast<py::list>();
      require_length("emas", list.size(), "params", params.size());
      for (std::size_t i = 0; i < params.size(); ++i)
        tensors[i].ema = companion(list[i], {"StepPlan", "emas", Index(i)}, i, extents).data;
    }
    extents_ = Extents(std::move(extents), "StepPlan");
    plan_ = std::make_unique<StepPlan>(rule_, std::move(tensors));
  }

  void step(const py::list& grads, const py::array_t<double, py::array::c_style>& coefs,
            const py::object& rows) {
    const py::tuple held(grads);  // keeps the arrays alive while the GIL is released
    const std::vector<const void*> pointers = gradient_pointers(held);
    const Index width = this->width();
    if (coefs.ndim() != 2 || coefs.shape(1) != width)
      throw py::value_error("step: coefs has " + std::to_string(coefs.ndim() == 2 ? coefs.shape(1) : 0) +
                            " columns, rule '" + kRules[rule_].name + "' takes " + std::to_string(width));
    const std::int32_t* row_of = nullptr;
    py::array_t<std::int32_t, py::array::c_style> row_array;
    if (!rows.is_none()) {
      row_array = rows.cast<py::array_t<std::int32_t, py::array::c_style>>();
      require_length("sets", std::size_t(row_array.size()), "params", views_.size());
      row_of = row_array.data();
    }
    for (std::size_t i = 0; i < views_.size(); ++i) {
      const Index row = row_of ? row_of[i] : 0;
      if (row < 0 || row >= coefs.shape(0))
        throw py::value_error("step: sets[" + std::to_string(i) + "] is " + std::to_string(row) +
                              ", coefs has " + std::to_string(coefs.shape(0)) + " rows");
      if (!row_of) break;
    }
    const double* table = coefs.data();
    const py::gil_scoped_release release;
    plan_->step(pointers.data(), table, width, row_of);
  }

  StepPlan& native() const { return *plan_; }
  Index width() const { return kCommonCoefs + kRules[rule_].coefs.size; }

  // Raises what step would raise for these gradients.
  void check(const py::list& grads) const { gradient_pointers(py::tuple(grads)); }

  double norm(const py::list& grads, double ord) {
    if (ord != 1.0 && ord != 2.0 && !(std::isinf(ord) && ord > 0))
      throw py::value_error("norm: ord must be 1, 2 or inf, got " + std::string(py::str(py::float_(ord))));
    const py::tuple held(grads);
    const std::vector<const void*> pointers = gradient_pointers(held);
    const py::gil_scoped_release release;
    return plan_->norm(pointers.data(), ord);
  }

 private:
  static py::tuple copy(const py::list& lists) {
    py::tuple result(lists.size());
    for (std::size_t i = 0; i < lists.size(); ++i) result[i] = py::tuple(lists[i].cast<py::list>());
    return result;
  }

  static void require_length(const char* what, std::size_t got, const char* of, std::size_t expected) {
    if (got != expected)
      throw py::value_error(std::string("StepPlan: ") + what + " has " + std::to_string(got) + " entries, " +
                            of + " has " + std::to_string(expected));
  }

  // State or average of params[i].
  ArrayView companion(py::handle object, const ArgName& name, std::size_t i,
                      std::vector<Extent>& extents) const {
    const ArgName owner{"StepPlan", "params", Index(i)};
    const ArrayView view = dense_output(object, name);
    ArrayView expected = views_[i];
    expected.dtype = state_dtype(expected.dtype);
    require_same_dtype(view, name, expected, owner);
    require_same_shape(view, name, expected, owner);
    extents.push_back(extent(view, name));
    return view;
  }

  // Null where the gradient is None. A gradient may be its own parameter's array, nothing else of the plan's.
  std::vector<const void*> gradient_pointers(const py::tuple& grads) const {
    if (grads.size() != views_.size())
      throw py::value_error("step: grads has " + std::to_string(grads.size()) + " entries, params has " +
                            std::to_string(views_.size()));
    std::vector<const void*> pointers(views_.size(), nullptr);
    for (std::size_t i = 0; i < views_.size(); ++i) {
      const py::handle object = PyTuple_GET_ITEM(grads.ptr(), Py_ssize_t(i));
      if (object.is_none()) continue;
      const ArgName name{"step", "grads", Index(i)}, owner{"step", "params", Index(i)};
      const ArrayView g = array_view(object, name);
      require_same_dtype(g, name, views_[i], owner);
      require_same_shape(g, name, views_[i], owner);
      require_dense(g, name, false);
      const char* begin = static_cast<const char*>(g.data);
      if (begin != views_[i].data)
        if (const Extent* hit = extents_.overlapping(begin, begin + g.size * item_bytes(g.dtype)))
          throw py::value_error(name.prefix() + " overlaps " + hit->name.text() + " in memory; pass a copy");
      pointers[i] = g.data;
    }
    return pointers;
  }

  int rule_;
  py::tuple held_;  // params, states and averages stay alive as long as the plan
  std::vector<ArrayView> views_;
  std::vector<std::vector<Index>> shapes_;  // views_' own: assigning to an array's shape frees NumPy's
  Extents extents_;
  std::unique_ptr<StepPlan> plan_;
};

}  // namespace

NativePlan native_plan(py::handle plan) {
  const Plan& held = plan.cast<const Plan&>();
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
      .def(py::init<const std::string&, py::list, py::list, py::object>(), py::arg("rule"), py::arg("params"),
           py::arg("states"), py::arg("emas") = py::none())
      .def("step", &Plan::step, py::arg("grads"), py::arg("coefs"), py::arg("sets") = py::none())
      .def("check", &Plan::check, py::arg("grads"))
      .def("norm", &Plan::norm, py::arg("grads"), py::arg("ord") = 2.0);
}

}  // namespace fastopt
