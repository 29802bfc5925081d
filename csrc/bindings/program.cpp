// Program for Python: checks layers, plans and arrays, then runs many steps in one call without the GIL.
#include "core/program.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <mutex>

#include "bindings/gil.hpp"
#include "bindings/modules.hpp"
#include "bindings/program.hpp"
#include "core/losses.hpp"

namespace fastopt {
namespace {

using Classes = py::array_t<Index, py::array::c_style>;

struct NumpyCall {
  using View = ArrayView;
  struct Plan {
    StepPlan* plan;
    const std::vector<PlanTensor>* tensors;
    Index width;
  };
  View view(py::handle object, const ArgName& name) const { return array_view(object, name); }
  std::optional<View> plain(py::handle object) const { return plain_view(object); }
  std::optional<ClassesView> classes(py::handle object, const ArgName&) const {
    if (!py::isinstance<Classes>(object)) return std::nullopt;
    const auto array = py::reinterpret_borrow<Classes>(object);
    return ClassesView{array.data(), array.size(), int(array.ndim())};
  }
  Plan plan(py::handle object) const {
    const NativePlan native = native_plan(object);
    return {native.plan, &native.plan->tensors(), native.width};
  }
};
constexpr NumpyCall kNumpy;
using Arrays = ProgramArrays<const NumpyCall>;

class PyProgram {
 public:
  PyProgram(const std::string& dtype, bool bf16, const py::list& layers, const py::tuple& loss,
            const py::list& plans)
      : arrays_(kNumpy, dtype, layers, loss, plans) {
    std::vector<ProgramPlan> native_plans;
    for (const auto& plan : arrays_.plans())
      native_plans.push_back({plan.native.plan, plan.first, plan.rows, plan.native.width, plan.sets});
    program_ = std::make_unique<Program>(arrays_.dtype(), bf16, arrays_.layers(), arrays_.loss(),
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
    if (at < target.size()) arrays_.bad_class(call, at, target.data()[at]);
  }

  py::tuple run(const std::string& call, const py::object& x, const py::object& target,
                const py::object& order_, Index begin, Index end, Index batch, Index steps,
                const py::object& weight, const py::object& param, const std::vector<double>& rates,
                std::uint64_t seed, std::uint64_t offset, const Arrays::Coefs& coefs, double max_norm,
                bool gather_weight, const std::optional<py::array_t<double>>& squares,
                const std::optional<py::function>& ready) {
    const char* const name = call.c_str();
    Index samples = 0;
    ProgramRun run{};
    Arrays::Order order;
    arrays_.read_data(kNumpy, name, x, target, samples, run);
    arrays_.read_steps(samples, order_, begin, end, batch, steps, order, run);
    arrays_.read_factors(kNumpy, name, weight, param, gather_weight, samples, run);
    arrays_.read_numbers(rates, seed, offset, coefs, max_norm, run);
    py::array_t<double> losses(steps);
    run.losses = losses.mutable_data();
    if (squares) {
      if (squares->size() != steps) refuse_program("squares has " + std::to_string(squares->size()));
      run.squares = const_cast<double*>(squares->data());
    }
    ProgramStop stop;
    {
      const ReleasedGil release;
      const std::lock_guard<std::mutex> lock(mutex_);
      Program::Ready tell;
      if (ready)
        tell = [&ready](Index layer) {
          const py::gil_scoped_acquire acquire;
          (*ready)(layer);
        };
      stop = program_->run(run, tell);
    }
    arrays_.require_whole(call, stop);
    return py::make_tuple(losses, run.norm);
  }

  // Of a plain run: its loss. None, and nothing has changed, where it is none.
  std::optional<double> step_plain(py::handle x, py::handle target, const Arrays::Coefs& coefs) {
    std::optional<ProgramRun> run = arrays_.plain_run(kNumpy, x, target, coefs);
    if (!run) return std::nullopt;
    double loss = 0.0;
    run->losses = &loss;
    const ReleasedGil release;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (program_->run(*run).reason != ProgramStop::none) return std::nullopt;
    return loss;
  }

  py::array predict(const py::object& x_, Index batch) {
    const ArrayView x = arrays_.data(kNumpy, x_, {"predict", "x"});
    const Index rows = arrays_.rows_of(x);
    if (batch < 1) refuse_program("batch is " + std::to_string(batch));
    py::array out(py::dtype(dtype_name(arrays_.dtype())), std::vector<py::ssize_t>{rows, program_->out()});
    void* const to = out.mutable_data();
    const ReleasedGil release;
    const std::lock_guard<std::mutex> lock(mutex_);
    program_->predict(x.data, rows, batch, to);
    return out;
  }

  Index steps() const { return program_->steps(); }

 private:
  Arrays arrays_;
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
           arg("offset"), arg("coefs"), arg("max_norm"), arg("gather_weight") = false,
           arg("squares") = py::none(), arg("ready") = py::none())
      .def("step_plain", &PyProgram::step_plain, arg("x"), arg("target"), arg("coefs"))
      .def("predict", &PyProgram::predict, arg("x"), arg("batch"))
      .def_property_readonly("steps", &PyProgram::steps);
}

}  // namespace fastopt
