// The CUDA step of tensors in fewer bytes, every rule and way of storing, against the CPU's plan: the same
// bits.
#include "bits.hpp"
#include "formulas/common.hpp"
#include "formulas/packed.hpp"
#include "parts.hpp"
#include "plain.hpp"

namespace fastopt::test {
namespace {

using Bytes = Guarded<std::uint8_t>;

// What of a tensor is stored otherwise than the rule computes it, apart from its averages.
enum class Extra { none, remainder, by_chance, shadow, ema };
constexpr Extra kExtras[] = {Extra::none, Extra::remainder, Extra::by_chance, Extra::shadow, Extra::ema};

Stored stored_as(const Names& states, int s, bool bytes) {
  const Packable kind = packable(states, s);
  if (kind == Packable::no) return Stored::as_computed;
  if (!bytes) return Stored::bf16;
  return kind == Packable::with_sign ? Stored::signed_byte : Stored::unsigned_byte;
}

void check_bytes(const std::string& what, const Bytes& got, const Bytes& want) {
  for (Index i = 0; i < got.size(); ++i)
    if (got[i] != want[i] && failures++ < 50)
      fprintf(stderr, "%s: byte %ld of %ld is %d, the CPU has %d\n", what.c_str(), long(i), long(got.size()),
              got[i], want[i]);
}

// A parameter of storage type P with all that belongs to it.
template <class P>
struct PackedArrays {
  Index n;
  Extra extra;
  Guarded<P> p, g;
  Guarded<float> ema;
  Guarded<std::int16_t> remainder;
  Guarded<Bf16> shadow;
  std::vector<Bytes> states, exponents;
  std::vector<Stored> stored;

  PackedArrays(Random& random, Index n_, Extra extra_, const Names& names, bool bytes)
      : n(n_), extra(extra_), p(n), g(n), ema(random.uniforms<float>(n, -1, 1)), remainder(n), shadow(n) {
    for (Index i = 0; i < n; ++i) {
      p[i] = Store<P>::from(float(random.uniform(-1, 1)));
      g[i] = Store<P>::from(float(std::ldexp(random.uniform(-1, 1), int(random.below(12)) - 6)));
      remainder[i] = std::int16_t(int(random.below(65536)) - 32768);
    }
    for (int s = 0; s < names.size; ++s) {
      stored.push_back(stored_as(names, s, bytes));
      const Guarded<float> values = random.uniforms<float>(n, 0.01, 0.5);
      const Index each = stored.back() == Stored::as_computed ? 4 : stored.back() == Stored::bf16 ? 2 : 1;
      states.emplace_back(n * each);
      exponents.emplace_back((n + kGroup - 1) / kGroup, std::uint8_t(120));
      for (Index i = 0; i < n; ++i) {
        const std::uint32_t bits = to_bits(values[i]),
                            kept = each == 1 ? std::uint32_t(random.below(256)) : bits >> 16;
        std::memcpy(states.back().data() + i * each, each == 4 ? &bits : &kept, std::size_t(each));
      }
    }
  }
  PackedArrays(const PackedArrays& other)
      : n(other.n),
        extra(other.extra),
        p(copy(other.p)),
        g(copy(other.g)),
        ema(copy(other.ema)),
        remainder(copy(other.remainder)),
        shadow(copy(other.shadow)),
        stored(other.stored) {
    for (const Bytes& state : other.states) states.push_back(copy(state));
    for (const Bytes& bytes : other.exponents) exponents.push_back(copy(bytes));
  }
  PackedArrays(PackedArrays&&) = default;

  PlanTensor tensor() const {
    PlanTensor entry{p.data(), {}, extra == Extra::ema ? ema.data() : nullptr, n, kDType<P>};
    for (std::size_t s = 0; s < states.size(); ++s) {
      entry.states[s] = states[s].data();
      entry.packing.states[s] = stored[s];
      if (stored[s] >= Stored::signed_byte) entry.packing.exponents[s] = exponents[s].data();
    }
    if (kDType<P> == DType::bf16 && extra == Extra::remainder) entry.packing.remainder = remainder.data();
    if (kDType<P> == DType::bf16 && extra == Extra::by_chance) entry.packing.by_chance = true;
    if (kDType<P> == DType::f32 && extra == Extra::shadow) entry.packing.shadow = shadow.data();
    return entry;
  }
  void check(const std::string& what, const PackedArrays& want) const {
    check_same(what + " p", p, want.p);
    check_same(what + " ema", ema, want.ema);
    check_same(what + " shadow", shadow, want.shadow);
    for (Index i = 0; i < n; ++i) CHECK(remainder[i] == want.remainder[i]);
    for (std::size_t s = 0; s < states.size(); ++s) {
      check_bytes(what + " state", states[s], want.states[s]);
      check_bytes(what + " exponents", exponents[s], want.exponents[s]);
    }
  }
};

template <template <class> class Rule, class P>
void check_storage(int rule, Random& random, bool bytes) {
  std::vector<PackedArrays<P>> got, want;
  std::vector<PlanTensor> on_cuda, on_cpu;
  std::vector<const void*> grads;
  for (const Extra extra : kExtras)
    for (const int n : {1, kGroup - 1, kGroup + 1, 1025, 2100}) {
      got.emplace_back(random, n, extra, Rule<float>::states, bytes);
      want.emplace_back(got.back());
    }
  for (std::size_t t = 0; t < got.size(); ++t) {
    on_cuda.push_back(got[t].tensor());
    on_cpu.push_back(want[t].tensor());
    grads.push_back(got[t].g.data());
  }
  const DevicePlan device(rule, on_cuda);
  StepPlan host(rule, on_cpu);
  for (const bool bounded : {false, true}) {
    const std::vector<double> coefs = coefficients<Rule>(bounded);
    device.step({grads.data(), coefs.data(), Index(coefs.size())}, nullptr);
    host.step(grads.data(), coefs.data(), Index(coefs.size()), nullptr);
    for (std::size_t t = 0; t < got.size(); ++t)
      got[t].check(std::string(Rule<float>::name) + (bytes ? " in bytes" : " in bfloat16") + " dtype " +
                       std::to_string(int(kDType<P>)) + " tensor " + std::to_string(t),
                   want[t]);
  }
}

template <template <class> class Rule>
void check_rule(int rule, Random& random) {
  for (const bool bytes : {false, true}) {
    check_storage<Rule, float>(rule, random, bytes);
    check_storage<Rule, Bf16>(rule, random, bytes);
    check_storage<Rule, F16>(rule, random, bytes);
  }
}

template <template <class> class... Rule>
void check_rules(Formulas<Rule...>, Random& random) {
  int rule = 0;
  (check_rule<Rule>(rule++, random), ...);
}

}  // namespace

void test_cuda_step_packed() {
  Random random(29);
  check_rules(Rules{}, random);
}

}  // namespace fastopt::test
