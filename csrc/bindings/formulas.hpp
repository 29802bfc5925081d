// The formulas of the registry by name, with their parameters.
#pragma once

#include <pybind11/pybind11.h>

#include <iterator>
#include <string>

#include "formulas/registry.hpp"

namespace fastopt {

struct FormulaInfo {
  const char* name;
  Names params;
  bool grad_needs_x = true, grad_needs_y = false;
};

template <class List>
struct Infos;
template <template <class> class... F>
struct Infos<Formulas<F...>> {
  template <template <class> class G>
  static constexpr FormulaInfo info() {
    if constexpr (requires { G<double>::grad_needs_x; }) {
      return {G<double>::name, G<double>::params, G<double>::grad_needs_x, G<double>::grad_needs_y};
    } else {
      return {G<double>::name, G<double>::params};
    }
  }
  static constexpr FormulaInfo at[] = {info<F>()...};
};
inline constexpr auto& kActivations = Infos<Activations>::at;
inline constexpr auto& kLosses = Infos<Losses>::at;

// One formula chosen by name, with its parameters.
struct Chosen {
  int index;
  const FormulaInfo& info;
  double params[Names::kMax] = {};
};

template <class InfoList>
Chosen choose(const char* kind, const InfoList& infos, const std::string& name,
              const pybind11::tuple& params) {
  std::string known;
  for (int f = 0; f < int(std::size(infos)); ++f) {
    const FormulaInfo& info = infos[f];
    if (name != info.name) {
      known += std::string(f ? ", " : "") + info.name;
      continue;
    }
    if (int(params.size()) != info.params.size)
      throw pybind11::type_error(name + ": params has " + std::to_string(params.size()) +
                                 " entries, expected " + std::to_string(info.params.size));
    Chosen chosen{f, info};
    for (int i = 0; i < info.params.size; ++i) chosen.params[i] = params[std::size_t(i)].cast<double>();
    return chosen;
  }
  throw pybind11::value_error(std::string(kind) + ": name is '" + name + "', expected one of " + known);
}

template <class InfoList>
pybind11::dict describe(const InfoList& infos) {
  pybind11::dict result;
  for (const FormulaInfo& info : infos) {
    pybind11::tuple params(info.params.size);
    for (int i = 0; i < info.params.size; ++i) params[std::size_t(i)] = pybind11::str(info.params.at[i]);
    result[info.name] = pybind11::make_tuple(params, info.grad_needs_x, info.grad_needs_y);
  }
  return result;
}

}  // namespace fastopt
