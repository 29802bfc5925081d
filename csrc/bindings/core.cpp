// The _core module: instruction set, threads, and the list of its parts.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/arrays.hpp"
#include "bindings/modules.hpp"
#include "core/cache.hpp"
#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "formulas/philox.hpp"

namespace fastopt {
namespace {

constexpr const char* kMathNames[] = {"exp", "exp_nonpositive", "exp_term",   "expm1", "log", "log1p", "tanh",
                                      "erf", "sigmoid",         "normal_cdf", "sqrt"};

py::list isas() {
  py::list names;
  for (const char* const* name = available_isas(); *name; ++name) names.append(*name);
  return names;
}

py::array math(const std::string& name, const py::array& x) {
  const ArrayView view = dense_input(x, {"math", "x"});
  if (int(view.dtype) >= kComputeTypes)
    throw py::type_error("math: x is " + std::string(dtype_name(view.dtype)));
  for (int f = 0; f < int(std::size(kMathNames)); ++f) {
    if (name != kMathNames[f]) continue;
    py::array y(x.dtype(), std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
    kernels().math[f].at[int(view.dtype)](view.data, y.mutable_data(), view.size);
    return y;
  }
  throw py::value_error("math: no function '" + name + "'");
}

}  // namespace
}  // namespace fastopt

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  using namespace fastopt;
  if (!*available_isas())
    throw py::import_error("fastopt: this CPU has none of the instruction sets that this build is for");
  m.doc() = "The native layer of fastopt.";
  m.attr("__version__") = FASTOPT_VERSION;
  m.attr("compiler") = __VERSION__;

  bind_ceilings(m);

  m.def("isa", [] { return kernels().isa; }, "The instruction set level in use.");
  m.def("isas", &isas, "The levels that this build has and this CPU runs, best first.");
  m.def(
      "set_isa",
      [](const std::string& name) {
        if (!set_isa(name.c_str()))
          throw py::value_error("set_isa: '" + name + "' is not available, expected one of " +
                                std::string(py::str(py::str(", ").attr("join")(isas()))));
      },
      py::arg("name"));
  m.def("rejected_isa", &rejected_isa, "FASTOPT_ISA's value where it named no available level, else None.");
  m.def("num_threads", &num_threads);
  m.def(
      "set_num_threads",
      [](int n) {
        if (n < 1) throw py::value_error("set_num_threads: n must be at least 1, got " + std::to_string(n));
        set_num_threads(n);
      },
      py::arg("n"));
  m.def("stream_bytes", &stream_bytes, "Outputs of at least this size are stored past the caches.");
  m.def("set_stream_bytes", &set_stream_bytes, py::arg("bytes"));
  m.def("math", &math, py::arg("name"), py::arg("x"),
        "A function of math.hpp on an array, for its accuracy tests.");
  m.def(
      "philox",
      [](std::uint64_t seed, std::uint64_t offset, py::ssize_t n) {
        py::array_t<std::uint32_t> words(n);
        for (py::ssize_t i = 0; i < n; ++i)
          words.mutable_data()[i] = philox_word(seed, offset, std::uint64_t(i));
        return words;
      },
      py::arg("seed"), py::arg("offset"), py::arg("n"), "The first n words of the counter-based generator.");
  bind_step(m);
  bind_kernels(m);
  bind_linear(m);
  bind_plain_linear(m);
  bind_program(m);
}
