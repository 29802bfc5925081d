// The CUDA batch norm driver against the CPU's: sums of integers, which are exact in any order, and the
// passes with the same bits.
#include "core/batch_norm.hpp"

#include "bits.hpp"
#include "core/chunks.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

struct Scratch {
  std::vector<double> at;
  Scratch(Index rows, Index columns)
      : at(std::size_t(batch_norm_scratch_bytes(rows, columns)) / sizeof(double) + 1) {}
  // Counts are left as they were found.
  ~Scratch() {
    for (int i = 0; i < 8; ++i) CHECK(at[std::size_t(i)] == 0.0);
  }
};

template <class T>
struct Rows {
  Guarded<T> mean, rstd, var, weight, bias, center, slope;
  explicit Rows(Index n)
      : mean(n, T(-7)),
        rstd(n, T(-7)),
        var(n, T(-7)),
        weight(n, T(-7)),
        bias(n, T(-7)),
        center(n, T(-7)),
        slope(n, T(-7)) {}
  BatchSaved saved() const { return {mean.data(), rstd.data(), var.data()}; }
  BatchGradients gradients() const { return {weight.data(), bias.data(), center.data(), slope.data()}; }
};

template <class T>
void check_close(const char* what, const Guarded<T>& got, const Guarded<T>& want, double units = 4) {
  for (Index i = 0; i < got.size(); ++i)
    check_near<T>(std::string("CUDA batch norm ") + what, i, double(got[i]), double(want[i]), units, 10);
}

// The dtype's statistics and sums. Of integers around zero the sums differ by what shifts leave alone.
template <class T>
void check_sums(Random& random, Index rows, Index columns) {
  constexpr DType dtype = kDType<T>;
  const Guarded<T> x = random.integers<T>(rows * columns, 9), dy = random.integers<T>(rows * columns, 9);
  const Rows<T> cuda(columns), cpu(columns);
  Scratch scratch(rows, columns);
  batch_statistics(dtype, x.data(), rows, columns, 0.5, cpu.saved());
  batch_statistics_on_device(dtype, x.data(), rows, columns, 0.5, cuda.saved(), scratch.at.data(), nullptr);
  check_close("mean", cuda.mean, cpu.mean);
  check_close("rstd", cuda.rstd, cpu.rstd);
  check_close("var", cuda.var, cpu.var, 16);
  batch_norm_sums(dtype, dy.data(), x.data(), rows, columns, cpu.saved(), cpu.gradients());
  batch_norm_sums_on_device(dtype, dy.data(), x.data(), rows, columns, cpu.saved(), cuda.gradients(),
                            scratch.at.data(), nullptr);
  check_close("dweight", cuda.weight, cpu.weight, 4 * std::sqrt(double(rows)));
  check_same("dbias", cuda.bias, cpu.bias);
  check_same("center", cuda.center, cpu.center);
  check_close("slope", cuda.slope, cpu.slope);
  const Guarded<T> kept = copy(cuda.bias);  // what is not wanted is left alone
  batch_norm_sums_on_device(dtype, dy.data(), x.data(), rows, columns, cpu.saved(),
                            {cuda.weight.data(), nullptr, nullptr, nullptr}, scratch.at.data(), nullptr);
  check_same("dbias", cuda.bias, kept);
}

template <class T>
void check_passes(Random& random, Index rows, Index columns, bool aligned) {
  constexpr DType dtype = kDType<T>;
  const Index n = rows * columns, room = padded(n, aligned);
  const Guarded<T> x = any_numbers<T>(random, room), dy = any_numbers<T>(random, room);
  Rows<T> r(columns);
  for (Guarded<T>* v : {&r.mean, &r.rstd, &r.weight, &r.bias, &r.center, &r.slope})
    *v = random.uniforms<T>(columns, 0.1, 2);
  const Index by = room - n;
  for (const bool plain : {false, true}) {
    const Guarded<T> got(room), want(room), got_dx(room), want_dx(room);
    BatchNormArgs args{x.data() + by,
                       columns,
                       plain ? nullptr : r.mean.data(),
                       r.rstd.data(),
                       plain ? nullptr : r.weight.data(),
                       plain ? nullptr : r.bias.data(),
                       got.data() + by};
    normalize_on_device(dtype, args, rows, nullptr);
    args.y = want.data() + by;
    kernels().batch_norm[int(dtype)].normalize(args, 0, rows);
    check_same("normalised", got, want);
    BatchNormGradArgs grad{dy.data() + by, args.x,          columns,        r.mean.data(),     r.rstd.data(),
                           args.weight,    r.center.data(), r.slope.data(), got_dx.data() + by};
    normalize_grad_on_device(dtype, grad, rows, nullptr);
    grad.dx = want_dx.data() + by;
    kernels().batch_norm[int(dtype)].normalize_grad(grad, 0, rows);
    check_same("its gradient", got_dx, want_dx);
  }
}

template <class T>
void check_running(Random& random, Index columns) {
  constexpr DType dtype = kDType<T>;
  Rows<T> r(columns);
  r.mean = random.uniforms<T>(columns, -2, 2);
  r.var = random.uniforms<T>(columns, 0.1, 2);
  const Guarded<T> mean = random.uniforms<T>(columns, -2, 2), var = random.uniforms<T>(columns, 0.1, 2);
  const Guarded<T> want_mean = copy(mean), want_var = copy(var), want(columns);
  Index batches = 4;
  for (const double momentum : {0.3, -1.0}) {
    const std::int32_t stopped = 1, running = 0;
    track_on_device(dtype, r.saved(), columns, momentum, &batches, &stopped, mean.data(), var.data(),
                    nullptr);
    check_same("tracked after a stop", mean, want_mean);
    track_on_device(dtype, r.saved(), columns, momentum, &batches, &running, mean.data(), var.data(),
                    nullptr);
    track(dtype, r.saved(), columns, momentum, double(batches), want_mean.data(), want_var.data());
    check_same("running mean", mean, want_mean);
    check_same("running var", var, want_var);
  }
  CHECK(batches == 6);
  running_rstd_on_device(dtype, var.data(), columns, 1e-3, r.rstd.data(), nullptr);
  running_rstd(dtype, var.data(), columns, 1e-3, want.data());
  check_same("rstd of the running var", r.rstd, want);
}

template <class T>
void check_type(Random& random) {
  for (const Index columns : {1, 3, 31, 32, 33, 300, 530})
    for (const Index rows : {2, 5, 255, 257, 1100}) {
      if (rows * columns > 200000) continue;
      check_sums<T>(random, rows, columns);
      if (rows < 300)
        for (const bool aligned : {true, false}) check_passes<T>(random, rows, columns, aligned);
    }
  for (const Index columns : {1, 255, 256, 257, 700}) check_running<T>(random, columns);
  batch_statistics_on_device(kDType<T>, nullptr, 3, 0, 0.5, {}, nullptr, nullptr);
  normalize_on_device(kDType<T>, {}, 3, nullptr);
  normalize_grad_on_device(kDType<T>, {}, 3, nullptr);
  running_rstd_on_device(kDType<T>, nullptr, 0, 0.5, nullptr, nullptr);
}

}  // namespace

void test_cuda_batch_norm() {
  Random random(12);
  check_type<float>(random);
  check_type<double>(random);
}

}  // namespace fastopt::test
