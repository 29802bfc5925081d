// What StepPlan is in _core and in _cuda: the checks of parameters, states, gradients and coefficients.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "core/plan.hpp"
#include "formulas/common.hpp"
#include "formulas/packed.hpp"
#include "formulas/registry.hpp"

namespace fastopt {

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
inline constexpr auto& kRules = RuleList<Rules>::infos;

inline int find_rule(const std::string& name) {
  std::string known;
  for (int r = 0; r < Rules::size; ++r) {
    if (name == kRules[r].name) return r;
    known += std::string(r ? ", " : "") + kRules[r].name;
  }
  throw py::value_error("StepPlan: rule is '" + name + "', expected one of " + known);
}

// ValueError unless ord names a norm that the reduce driver has.
inline Monoid norm_monoid(double ord) {
  if (ord != 1.0 && ord != 2.0 && !(std::isinf(ord) && ord > 0))
    throw py::value_error("norm: ord must be 1, 2 or inf, got " + std::string(py::str(py::float_(ord))));
  return ord == 2.0 ? Monoid::sum_squares : ord == 1.0 ? Monoid::abs_sum : Monoid::abs_max;
}

// What of a plan's arrays is stored in fewer bytes, apart from states whose dtype tells it. Lists have an
// entry for each parameter; None stands for none.
struct PackedArrays {
  py::list exponents;              // of each state: None, or a list of bytes' exponents, one for each group
  py::object remainders, shadows;  // a list of arrays or None
  bool by_chance = false;          // bfloat16 parameters without a remainder are rounded so
};

// The arrays of a plan, kept alive with it. Call: how an argument is looked at; its `view` returns a
// Call::View, which is an ArrayView, its `bytes` Bytes. An array is one tensor of the plan, or where `parts`
// says how many, so many of equal length.
template <class Call>
class PlanArrays {
 public:
  PlanArrays(Call& call, const std::string& rule, const py::list& params, const py::list& states,
             const py::object& emas, const PackedArrays& packed, const py::object& parts)
      : rule_(find_rule(rule)),
        held_(py::make_tuple(py::tuple(params), copy(states), entries(emas), copy(packed.exponents),
                             entries(packed.remainders), entries(packed.shadows))) {
    const RuleInfo& info = kRules[rule_];
    require_length("states", py::len(states), "the rule's states", std::size_t(info.states.size));
    std::vector<Extent> extents;
    for (std::size_t i = 0; i < params.size(); ++i) {
      const ArgName name{"StepPlan", "params", Index(i)};
      const typename Call::View p = call.view(params[i], name);
      require_dense(p, name, true);
      extents.push_back(extent(p, name));
      tensors_.push_back({p.data, {}, nullptr, p.size, p.dtype, {}});
      views_.push_back(p);
      shapes_.emplace_back(p.shape, p.shape + p.ndim);
      views_.back().shape = shapes_.back().data();
    }
    for (int s = 0; s < info.states.size; ++s) {
      const py::list list = states[std::size_t(s)].template cast<py::list>();
      require_length(info.states.at[s], list.size(), "params", params.size());
      const py::object exponents = std::size_t(s) < packed.exponents.size()
                                       ? py::object(packed.exponents[std::size_t(s)])
                                       : py::none();
      for (std::size_t i = 0; i < params.size(); ++i) add_state(call, s, list[i], exponents, i, extents);
    }
    for (std::size_t i = 0; i < params.size(); ++i) {
      add_remainder(call, packed, i, extents);
      add_shadow(call, packed, i, extents);
    }
    if (!emas.is_none()) {
      const py::list list = emas.cast<py::list>();
      require_length("emas", list.size(), "params", params.size());
      for (std::size_t i = 0; i < params.size(); ++i)
        tensors_[i].ema = companion(call, list[i], {"StepPlan", "emas", Index(i)}, i, extents);
    }
    extents_ = Extents(std::move(extents), "StepPlan");
    parts_.assign(views_.size(), 1);
    if (!parts.is_none()) divide(parts.cast<std::vector<Index>>());
  }

  int rule() const { return rule_; }
  const std::vector<PlanTensor>& tensors() const { return tensors_; }
  const std::vector<typename Call::View>& params() const { return views_; }
  Index width() const { return kCommonCoefs + kRules[rule_].coefs.size; }

  // One for each tensor, null where the gradient is None. A gradient may be its own parameter's array,
  // nothing else of the plan's.
  std::vector<const void*> gradient_pointers(Call& call, const py::tuple& grads) const {
    if (grads.size() != views_.size())
      throw py::value_error("step: grads has " + std::to_string(grads.size()) + " entries, params has " +
                            std::to_string(views_.size()));
    std::vector<const void*> pointers(tensors_.size(), nullptr);
    auto next = pointers.begin();
    for (std::size_t i = 0; i < views_.size(); ++i) {
      const py::handle object = PyTuple_GET_ITEM(grads.ptr(), Py_ssize_t(i));
      const auto first = next;
      next += parts_[i];
      if (object.is_none()) continue;
      const ArgName name{"step", "grads", Index(i)}, owner{"step", "params", Index(i)};
      const typename Call::View g = call.view(object, name);
      require_same_dtype(g, name, views_[i], owner);
      require_same_shape(g, name, views_[i], owner);
      require_dense(g, name, false);
      const char* begin = static_cast<const char*>(g.data);
      if (begin != views_[i].data)
        if (const Extent* hit = extents_.overlapping(begin, begin + g.size * item_bytes(g.dtype)))
          throw py::value_error(name.prefix() + " overlaps " + hit->name.text() + " in memory; pass a copy");
      const Index bytes = g.size / parts_[i] * item_bytes(g.dtype);
      for (Index part = 0; part < parts_[i]; ++part) first[part] = begin + part * bytes;
    }
    return pointers;
  }

  // A float64 array of two dimensions, dense.
  double* table(Call& call, py::handle array, const ArgName& name, std::size_t rows,
                std::size_t columns) const {
    const typename Call::View view = call.view(array, name);
    require_dense(view, name, true);
    if (view.dtype != DType::f64 || view.ndim != 2 || view.shape[0] != Index(rows) ||
        view.shape[1] != Index(columns))
      throw py::type_error(name.prefix() + " is " + dtype_name(view.dtype) + " of shape " + shape_text(view) +
                           ", expected float64 of shape (" + std::to_string(rows) + ", " +
                           std::to_string(columns) + ")");
    return static_cast<double*>(view.data);
  }

  // A step's factors, a row for each tensor; null for None.
  const double* checked_factors(Call& call, const py::object& factors) const {
    if (factors.is_none()) return nullptr;
    return table(call, factors, {"step", "factors"}, tensors_.size(), Factors::kSize);
  }

  // Where `out` has a float64 for each tensor.
  double* one_each(Call& call, py::handle out, const ArgName& name) const {
    const typename Call::View view = call.view(out, name);
    require_dense(view, name, true);
    if (view.dtype != DType::f64 || view.ndim != 1 || view.size != Index(tensors_.size()))
      throw py::type_error(name.prefix() + " is " + dtype_name(view.dtype) + " of shape " + shape_text(view) +
                           ", expected float64 of shape (" + std::to_string(tensors_.size()) + ",)");
    return static_cast<double*>(view.data);
  }

  using Coefs = py::array_t<double, py::array::c_style>;
  using Rows = py::array_t<std::int32_t, py::array::c_style>;

  // The row of each parameter; null: all use the first. `rows` is None or becomes what is pointed into.
  const std::int32_t* checked_rows(const Coefs& coefs, py::object& rows) const {
    if (coefs.ndim() != 2 || coefs.shape(1) != width())
      throw py::value_error("step: coefs has " + std::to_string(coefs.ndim() == 2 ? coefs.shape(1) : 0) +
                            " columns, rule '" + kRules[rule_].name + "' takes " + std::to_string(width()));
    const std::int32_t* row_of = nullptr;
    if (!rows.is_none()) {
      const Rows array = rows.cast<Rows>();
      require_length("sets", std::size_t(array.size()), "the plan", tensors_.size());
      row_of = array.data();
      rows = array;
    }
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const Index row = row_of ? row_of[i] : 0;
      if (row < 0 || row >= coefs.shape(0))
        throw py::value_error("step: sets[" + std::to_string(i) + "] is " + std::to_string(row) +
                              ", coefs has " + std::to_string(coefs.shape(0)) + " rows");
      if (!row_of) break;
    }
    return row_of;
  }

 private:
  static py::object entries(const py::object& list) { return list.is_none() ? list : py::tuple(list); }
  static py::tuple copy(const py::list& lists) {
    py::tuple result(lists.size());
    for (std::size_t i = 0; i < lists.size(); ++i) result[i] = entries(lists[i]);
    return result;
  }

  static void require_length(const char* what, std::size_t got, const char* of, std::size_t expected) {
    if (got != expected)
      throw py::value_error(std::string("StepPlan: ") + what + " has " + std::to_string(got) + " entries, " +
                            of + " has " + std::to_string(expected));
  }

  // Cuts each array into so many tensors.
  void divide(const std::vector<Index>& parts) {
    require_length("parts", parts.size(), "params", views_.size());
    std::vector<PlanTensor> cut;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      PlanTensor tensor = tensors_[i];
      if (parts[i] < 1 || tensor.n % parts[i] != 0)
        throw py::value_error("StepPlan: parts[" + std::to_string(i) + "] is " + std::to_string(parts[i]) +
                              ", params[" + std::to_string(i) + "] has " + std::to_string(tensor.n) +
                              " elements");
      tensor.n /= parts[i];
      for (const std::uint8_t* exponents : tensor.packing.exponents)
        if (exponents && parts[i] > 1 && tensor.n % kGroup != 0)
          throw py::value_error("StepPlan: parts[" + std::to_string(i) + "] is " + std::to_string(parts[i]) +
                                ", of " + std::to_string(tensor.n) + " elements each; those of params[" +
                                std::to_string(i) + "] share exponents " + std::to_string(kGroup) +
                                " at a time");
      for (Index part = 0; part < parts[i]; ++part) {
        cut.push_back(tensor);
        move_on(tensor);
      }
    }
    tensors_ = std::move(cut);
    parts_ = parts;
  }

  // Lets all arrays begin where the tensor ends.
  static void move_on(PlanTensor& tensor) {
    const Index n = tensor.n;
    Packing& packing = tensor.packing;
    tensor.p = element_at(tensor.p, n, tensor.dtype);
    for (int s = 0; s < 4; ++s) {
      const Stored stored = packing.states[s];
      tensor.states[s] = stored == Stored::as_computed
                             ? element_at(tensor.states[s], n, state_dtype(tensor.dtype))
                             : static_cast<char*>(tensor.states[s]) + n * (stored == Stored::bf16 ? 2 : 1);
      if (packing.exponents[s]) packing.exponents[s] += n / kGroup;
    }
    tensor.ema = element_at(tensor.ema, n, state_dtype(tensor.dtype));
    if (packing.remainder) packing.remainder += n;
    packing.shadow = element_at(packing.shadow, n, packing.shadow_dtype);
  }

  // State s of params[i], stored as its dtype tells.
  void add_state(Call& call, int s, py::handle object, const py::object& exponents, std::size_t i,
                 std::vector<Extent>& extents) {
    const RuleInfo& info = kRules[rule_];
    const ArgName name{"StepPlan", info.states.at[s], Index(i)}, owner{"StepPlan", "params", Index(i)};
    PlanTensor& tensor = tensors_[i];
    const bool as_bytes = !exponents.is_none() && !exponents.cast<py::list>()[i].is_none();
    const bool as_bf16 = !as_bytes && call.view(object, name).dtype == DType::bf16;
    if (!as_bytes && !as_bf16) {
      tensor.states[s] = companion(call, object, name, i, extents);
      return;
    }
    const Packable how = packable(info.states, s);
    if (how == Packable::no)
      throw py::type_error(name.prefix() + " is stored in fewer bytes, rule '" + info.name +
                           "' needs it as it is computed");
    if (views_[i].dtype == DType::f64)
      throw py::type_error(name.prefix() + " is stored in fewer bytes, " + owner.text() + " is float64");
    tensor.packing.states[s] = as_bf16                      ? Stored::bf16
                               : how == Packable::with_sign ? Stored::signed_byte
                                                            : Stored::unsigned_byte;
    tensor.states[s] = bytes(call, object, name, (as_bf16 ? 2 : 1) * tensor.n, extents);
    if (as_bytes)
      tensor.packing.exponents[s] = static_cast<std::uint8_t*>(
          bytes(call, exponents.cast<py::list>()[i], {"StepPlan", "exponents", Index(i)},
                (tensor.n + kGroup - 1) / kGroup, extents));
  }

  void add_remainder(Call& call, const PackedArrays& packed, std::size_t i, std::vector<Extent>& extents) {
    PlanTensor& tensor = tensors_[i];
    const py::object object = entry(packed.remainders, "remainders", i);
    const ArgName name{"StepPlan", "remainders", Index(i)}, owner{"StepPlan", "params", Index(i)};
    tensor.packing.by_chance = packed.by_chance && object.is_none() && tensor.dtype == DType::bf16;
    if (object.is_none()) return;
    if (tensor.dtype != DType::bf16)
      throw py::type_error(name.prefix() + " is of bfloat16 parameters, " + owner.text() + " is " +
                           dtype_name(tensor.dtype));
    tensor.packing.remainder = static_cast<std::int16_t*>(bytes(call, object, name, 2 * tensor.n, extents));
  }

  void add_shadow(Call& call, const PackedArrays& packed, std::size_t i, std::vector<Extent>& extents) {
    const py::object object = entry(packed.shadows, "shadows", i);
    if (object.is_none()) return;
    const ArgName name{"StepPlan", "shadows", Index(i)}, owner{"StepPlan", "params", Index(i)};
    const typename Call::View view = call.view(object, name);
    require_dense(view, name, true);
    require_same_shape(view, name, views_[i], owner);
    if (views_[i].dtype != DType::f32 || item_bytes(view.dtype) != 2)
      throw py::type_error(name.prefix() + " is " + dtype_name(view.dtype) + ", " + owner.text() + " is " +
                           dtype_name(views_[i].dtype) +
                           "; a shadow is a bfloat16 or float16 copy of a float32 parameter");
    tensors_[i].packing.shadow = view.data;
    tensors_[i].packing.shadow_dtype = view.dtype;
    extents.push_back(extent(view, name));
  }

  py::object entry(const py::object& list, const char* what, std::size_t i) const {
    if (list.is_none()) return list;
    const py::list items = list.cast<py::list>();
    require_length(what, items.size(), "params", views_.size());
    return items[i];
  }

  static void* bytes(Call& call, py::handle object, const ArgName& name, Index expected,
                     std::vector<Extent>& extents) {
    const Bytes found = call.bytes(object, name);
    require_bytes(found, name, expected);
    const char* const begin = static_cast<const char*>(found.data);
    extents.push_back({begin, begin + found.size, name});
    return found.data;
  }

  // State or average of params[i].
  void* companion(Call& call, py::handle object, const ArgName& name, std::size_t i,
                  std::vector<Extent>& extents) const {
    const ArgName owner{"StepPlan", "params", Index(i)};
    const typename Call::View view = call.view(object, name);
    require_dense(view, name, true);
    typename Call::View expected = views_[i];
    expected.dtype = state_dtype(expected.dtype);
    require_same_dtype(view, name, expected, owner);
    require_same_shape(view, name, expected, owner);
    extents.push_back(extent(view, name));
    return view.data;
  }

  int rule_;
  py::tuple held_;  // params, states and averages stay alive as long as the plan
  std::vector<PlanTensor> tensors_;
  std::vector<Index> parts_;  // of each array
  std::vector<typename Call::View> views_;
  std::vector<std::vector<Index>> shapes_;  // views_' own: assigning to an array's shape frees NumPy's
  Extents extents_;
};

}  // namespace fastopt
