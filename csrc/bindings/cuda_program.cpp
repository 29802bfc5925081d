// Program over device memory: checks as on the CPU, then steps as graphs on a stream.
#include "cuda/program.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <mutex>

#include "bindings/cuda_modules.hpp"
#include "bindings/device_arrays.hpp"
#include "bindings/gil.hpp"
#include "bindings/program.hpp"

namespace fastopt {
namespace {

struct ProgramCall : DeviceCall {
  using DeviceCall::DeviceCall;
  using Plan = NativeDevicePlan;

  std::optional<DeviceView> plain(py::handle object) {
    const DeviceView x = any_view(object, {"step", "x"});
    if (x.kind != 'f' || !x.c_contiguous || !x.aligned) return std::nullopt;
    return x;
  }
  std::optional<ClassesView> classes(py::handle object, const ArgName& name) {
    const DeviceView target = any_view(object, name);
    if (target.kind != 'i' || target.item != Index(sizeof(Index)) || !target.c_contiguous || !target.aligned)
      return std::nullopt;
    return ClassesView{static_cast<const Index*>(target.data), target.size, target.ndim};
  }
  Plan plan(py::handle object) const { return native_device_plan(object); }
};
using Arrays = ProgramArrays<ProgramCall>;

class CudaProgram {
 public:
  // As _core's; the precision is a name, or None for ieee.
  CudaProgram(const std::string& dtype, const std::optional<std::string>& precision, const py::list& layers,
              const py::tuple& loss, const py::list& plans, bool fuse)
      : CudaProgram(ProgramCall(0), dtype, precision_of("Program", precision), layers, loss, plans) {
    program_->fuse_updates(fuse);
  }

  void reserve(Index rows) {
    ProgramCall call(0);
    place(call);
    const std::lock_guard<std::mutex> lock(mutex_);
    program_->reserve(rows);
  }

  // Raises for a class out of range, before any step; waits for the stream. `run` raises for it too, and has
  // changed nothing then.
  void check_classes(const std::string& call_name, const py::object& target, std::uintptr_t stream) {
    ProgramCall call(stream);
    place(call);
    const std::optional<ClassesView> classes = call.classes(target, {call_name.c_str(), "target"});
    if (!classes) refuse_program("target has no classes");
    ProgramStop stop;
    {
      const ReleasedGil release;
      const std::lock_guard<std::mutex> lock(mutex_);
      stop = program_->check_classes(classes->data, classes->size, call.stream());
    }
    arrays_.require_whole(call_name, stop);
  }

  // Waits for the steps.
  py::tuple run(const std::string& call_name, const py::object& x, const py::object& target,
                const py::object& order_, Index begin, Index end, Index batch, Index steps,
                const py::object& weight, const py::object& param, const std::vector<double>& rates,
                std::uint64_t seed, std::uint64_t offset, const Arrays::Coefs& coefs, double max_norm,
                std::uintptr_t stream, bool gather_weight) {
    const char* const name = call_name.c_str();
    ProgramCall call(stream);
    place(call);
    Index samples = 0;
    ProgramRun run{};
    Arrays::Order order;
    arrays_.read_data(call, name, x, target, samples, run);
    arrays_.read_steps(samples, order_, begin, end, batch, steps, order, run);
    arrays_.read_factors(call, name, weight, param, gather_weight, samples, run);
    arrays_.read_numbers(rates, seed, offset, coefs, max_norm, run);
    require_running(name, call);
    py::array_t<double> losses(steps);
    run.losses = losses.mutable_data();
    arrays_.require_whole(call_name, finish(run, call));
    return py::make_tuple(losses, run.norm);
  }

  // Of a plain run: its loss. None, and nothing has changed, where it is none.
  std::optional<double> step_plain(py::handle x, py::handle target, const Arrays::Coefs& coefs,
                                   std::uintptr_t stream) {
    ProgramCall call(stream);
    place(call);
    std::optional<ProgramRun> run;
    try {
      run = arrays_.plain_run(call, x, target, coefs);
    } catch (const py::builtin_exception&) {
      return std::nullopt;
    }
    if (!run) return std::nullopt;
    require_running("step", call);
    double loss = 0.0;
    run->losses = &loss;
    if (finish(*run, call).reason != ProgramStop::none) return std::nullopt;
    return loss;
  }

  // Leaves the model's output in `out`, one row after another; waits for nothing.
  void predict(const py::object& x_, Index batch, const py::object& out_, std::uintptr_t stream) {
    ProgramCall call(stream);
    place(call);
    const ArgName x_name{"predict", "x"}, out_name{"predict", "out"};
    const DeviceView x = arrays_.data(call, x_, x_name), out = arrays_.data(call, out_, out_name);
    const Index rows = arrays_.rows_of(x);
    require_dense(out, out_name, true);
    require_apart(x, x_name, out, out_name, false);
    if (batch < 1) refuse_program("batch is " + std::to_string(batch));
    if (out.size != rows * program_->out())
      refuse_program("out has " + std::to_string(out.size) + " elements");
    require_running("predict", call);
    const ReleasedGil release;
    const std::lock_guard<std::mutex> lock(mutex_);
    program_->predict(x.data, rows, batch, out.data, call.stream());
  }

  Index steps() const { return program_->steps(); }

 private:
  CudaProgram(ProgramCall&& call, const std::string& dtype, Precision precision, const py::list& layers,
              const py::tuple& loss, const py::list& plans)
      : arrays_(call, dtype, layers, loss, plans) {
    for (const py::handle layer : layers)
      if (const py::object weight = layer.cast<py::tuple>()[3]; !weight.is_none() && !first_weight_)
        first_weight_ = weight.cast<py::tuple>()[0];
    if (precision != Precision::ieee && arrays_.dtype() != DType::f32)
      throw py::value_error("Program: the model is " + std::string(dtype_name(arrays_.dtype())) +
                            ", precision is for float32");
    std::vector<DeviceProgramPlan> native_plans;
    for (const auto& plan : arrays_.plans())
      native_plans.push_back({plan.native.plan, Index(plan.native.tensors->size()), plan.first, plan.rows,
                              plan.native.width, plan.sets});
    program_ = std::make_unique<DeviceProgram>(arrays_.dtype(), precision, arrays_.layers(), arrays_.loss(),
                                               native_plans);
  }

  // The call is on the model's device, where all its arrays must be.
  void place(ProgramCall& call) const {
    if (first_weight_) call.view(first_weight_, {"Program", "weight"});
  }

  static void require_running(const char* name, const ProgramCall& call) {
    if (is_capturing(call.stream()))
      throw std::runtime_error(std::string(name) +
                               ": the stream is being captured into a CUDA graph; a compiled step makes "
                               "graphs of its own");
  }

  ProgramStop finish(ProgramRun& run, const ProgramCall& call) {
    const ReleasedGil release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return program_->run(run, call.stream());
  }

  Arrays arrays_;
  py::object first_weight_;
  std::unique_ptr<DeviceProgram> program_;
  std::mutex mutex_;  // a second thread waits
};

}  // namespace

void bind_cuda_program(py::module_& m) {
  using py::arg;
  py::class_<CudaProgram>(m, "Program", "A model, a loss and an optimizer's plans as one step on a device.")
      .def(py::init<const std::string&, const std::optional<std::string>&, py::list, py::tuple, py::list,
                    bool>(),
           arg("dtype"), arg("precision"), arg("layers"), arg("loss"), arg("plans"), arg("fuse") = true)
      .def("reserve", &CudaProgram::reserve, arg("rows"))
      .def("check_classes", &CudaProgram::check_classes, arg("call"), arg("target"), arg("stream"))
      .def("run", &CudaProgram::run, arg("call"), arg("x"), arg("target"), arg("order"), arg("begin"),
           arg("end"), arg("batch"), arg("steps"), arg("weight"), arg("param"), arg("rates"), arg("seed"),
           arg("offset"), arg("coefs"), arg("max_norm"), arg("stream"), arg("gather_weight") = false)
      .def("step_plain", &CudaProgram::step_plain, arg("x"), arg("target"), arg("coefs"), arg("stream"))
      .def("predict", &CudaProgram::predict, arg("x"), arg("batch"), arg("out"), arg("stream"))
      .def_property_readonly("steps", &CudaProgram::steps);
}

}  // namespace fastopt
