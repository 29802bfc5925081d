// StepPlan for Python: checks arrays once, then one native call per optimizer step.
#include "bindings/step.hpp"

#include <pybind11/stl.h>

#include "bindings/gil.hpp"
#include "bindings/modules.hpp"
#include "core/loss_scale.hpp"

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
  Bytes bytes(py::handle object, const ArgName& name) const { return writable_bytes(object, name); }
};
constexpr NumpyCall kNumpy;
using Arrays = PlanArrays<const NumpyCall>;

class Plan {
 public:
  Plan(const std::string& rule, const py::list& params, const py::list& states, const py::object& emas,
       const py::list& exponents, const py::object& remainders, bool by_chance, const py::object& shadows,
       const py::object& parts)
      : arrays_(kNumpy, rule, params, states, emas, {exponents, remainders, shadows, by_chance}, parts),
        plan_(arrays_.rule(), arrays_.tensors()) {}

  void step(const py::list& grads, const Arrays::Coefs& coefs, py::object rows, const py::object& factors) {
    const py::tuple held(grads);  // keeps the arrays alive while the GIL is released
    const std::vector<const void*> pointers = gradient_pointers(held);
    const std::int32_t* row_of = arrays_.checked_rows(coefs, rows);
    const double* by = arrays_.checked_factors(kNumpy, factors);
    const double* table = coefs.data();
    {
      const ReleasedGil release;
      plan_.step(pointers.data(), table, arrays_.width(), row_of, by);
    }
    ++steps_;
  }

  void measure(const py::list& grads, const Arrays::Coefs& coefs, py::object rows, const py::object& out) {
    const py::tuple held(grads);
    const std::vector<const void*> pointers = gradient_pointers(held);
    const std::int32_t* row_of = arrays_.checked_rows(coefs, rows);
    double* const to = arrays_.table(kNumpy, out, {"measure", "out"}, 2, arrays_.tensors().size());
    const double* table = coefs.data();
    const ReleasedGil release;
    plan_.measure(pointers.data(), table, arrays_.width(), row_of, to);
  }

  StepPlan& native() { return plan_; }
  Index width() const { return arrays_.width(); }
  Index steps() const { return steps_; }

  // Raises what step would raise for these gradients.
  void check(const py::list& grads) const { gradient_pointers(py::tuple(grads)); }

  double norm(const py::list& grads, double ord) {
    norm_monoid(ord);
    const py::tuple held(grads);
    const std::vector<const void*> pointers = gradient_pointers(held);
    const ReleasedGil release;
    return plan_.norm(pointers.data(), ord);
  }

  void norms(const py::list& grads, const py::object& out) {
    const py::tuple held(grads);
    const std::vector<const void*> pointers = gradient_pointers(held);
    double* const to = arrays_.one_each(kNumpy, out, {"norms", "out"});
    const ReleasedGil release;
    plan_.norms(pointers.data(), to);
  }

  void param_norms(const py::object& out) {
    double* const to = arrays_.one_each(kNumpy, out, {"param_norms", "out"});
    const ReleasedGil release;
    plan_.param_norms(to);
  }

 private:
  std::vector<const void*> gradient_pointers(const py::tuple& grads) const {
    return arrays_.gradient_pointers(kNumpy, grads);
  }

  Arrays arrays_;
  StepPlan plan_;
  Index steps_ = 0;  // taken; changed with the GIL alone
};

using Codes = py::array_t<std::uint8_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;

Stored byte_kind(bool with_sign) { return with_sign ? Stored::signed_byte : Stored::unsigned_byte; }

// Bytes and their exponents of values, each rounded to the nearest.
py::tuple encode(const Floats& values, bool with_sign) {
  const Index n = Index(values.size());
  Codes codes(n), exponents((n + kGroup - 1) / kGroup);
  const std::vector<std::uint32_t> half(std::size_t(n), 1u << (kNoiseBits - 1));
  kernels().packing->encode[int(byte_kind(with_sign))](values.data(), {half.data(), nullptr, 0},
                                                       codes.mutable_data(), exponents.mutable_data(), n);
  return py::make_tuple(codes, exponents);
}

Floats decode(const Codes& codes, const Codes& exponents, bool with_sign) {
  const Index n = Index(codes.size());
  require_bytes({nullptr, Index(exponents.size()), 1}, {"decode", "exponents"}, (n + kGroup - 1) / kGroup);
  Floats values(n);
  kernels().packing->decode[int(byte_kind(with_sign))](codes.data(), exponents.data(), values.mutable_data(),
                                                       n);
  return values;
}

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
          py::list any, with_sign;
          for (int i = 0; i < rule.states.size; ++i) {
            const Packable how = packable(rule.states, i);
            if (how != Packable::no) any.append(rule.states.at[i]);
            if (how == Packable::with_sign) with_sign.append(rule.states.at[i]);
          }
          entry["packable"] = py::tuple(any);
          entry["signed"] = py::tuple(with_sign);
          result[rule.name] = entry;
        }
        return result;
      },
      "The update rules by name, with the names of their state arrays, of those that may be stored in fewer "
      "bytes, "
      "and of their coefficients.");
  m.def("packing_group", [] { return kGroup; }, "How many elements stored as bytes share an exponent.");
  m.def("encode", &encode, py::arg("values"), py::arg("with_sign"),
        "Float32 values as bytes and the exponents of their groups, each rounded to the nearest.");
  m.def("decode", &decode, py::arg("codes"), py::arg("exponents"), py::arg("with_sign"),
        "The values of bytes.");
  m.def(
      "joint_norm",
      [](const std::vector<double>& norms) { return joint_norm(norms.data(), Index(norms.size())); },
      py::arg("norms"), "The norm of arrays whose norms these are: NaN where one is NaN.");
  m.def("clip_factor", &clip_factor, py::arg("norm"), py::arg("max_norm"),
        "What scales gradients of this norm so that it is at most max_norm, as in torch.");
  m.def(
      "updated_scale",
      [](double scale, double growth_tracker, bool found_inf, double growth_factor, double backoff_factor,
         double growth_interval) {
        const LossScale next = updated({scale, growth_tracker, double(found_inf)},
                                       {growth_factor, backoff_factor, growth_interval});
        return py::make_tuple(next.scale, next.growth_tracker);
      },
      py::arg("scale"), py::arg("growth_tracker"), py::arg("found_inf"), py::arg("growth_factor"),
      py::arg("backoff_factor"), py::arg("growth_interval"),
      "The scale of a loss, and its growth tracker, after an update.");
  py::class_<Plan>(m, "StepPlan", "Parameters, state arrays and averages of one rule, cut into chunks once.")
      .def(py::init<const std::string&, py::list, py::list, py::object, py::list, py::object, bool,
                    py::object, py::object>(),
           py::arg("rule"), py::arg("params"), py::arg("states"), py::arg("emas") = py::none(),
           py::arg("exponents") = py::list(), py::arg("remainders") = py::none(),
           py::arg("by_chance") = false, py::arg("shadows") = py::none(), py::arg("parts") = py::none())
      .def("step", &Plan::step, py::arg("grads"), py::arg("coefs"), py::arg("sets") = py::none(),
           py::arg("factors") = py::none())
      .def("measure", &Plan::measure, py::arg("grads"), py::arg("coefs"), py::arg("sets"), py::arg("out"))
      .def("check", &Plan::check, py::arg("grads"))
      .def("norm", &Plan::norm, py::arg("grads"), py::arg("ord") = 2.0)
      .def("norms", &Plan::norms, py::arg("grads"), py::arg("out"))
      .def("param_norms", &Plan::param_norms, py::arg("out"))
      .def_property_readonly("steps", &Plan::steps);
}

}  // namespace fastopt
