// The step of float32 parameters whose averages are bfloat16 or bytes. Rules without such states have none.
#include <cstring>
#include <type_traits>

#include "core/dispatch.hpp"
#include "cpu/bytes.hpp"
#include "cpu/table.hpp"
#include "cpu/wide.hpp"
#include "formulas/common.hpp"
#include "formulas/registry.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {
namespace {

// A group's arithmetic is more than a core looks ahead. The first-level cache has too few lines under way, so
// the second is what is fetched into.
constexpr Index kAhead = 16 * kGroup;
template <class Stored>
FO_HD void prefetch(const Stored* at) {
  constexpr Index kBytes = 2 * kPair * Index(sizeof *at);
  for (Index i = 0; i < kBytes; i += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(at + kAhead) + i, 0, 2);
}

// The noise of one state: of bfloat16, or of bytes.
template <bool Halves>
struct Chances {
  const Noise* noise;
  const std::uint32_t* words;
  WideBits low;

  FO_HD Chances(const PackedChunk& packed, int s) : noise(packed.noise[0] + s) {}
  FO_HD void begin(Index first) {
    if (first % kNoiseBlock) return;
    const Noise& block = noise[first / kNoiseBlock * 4];
    words = Halves ? block.halves : block.words;
    low = (Halves ? block.low >> kHalfNoiseShift : block.low) - WideBits{};
  }
  // The bits of element i and those after it, which are the upper word when they have been added up.
  FO_HD WideBits with(Wide x, Index i) const {
    WideBits chances;
    __builtin_memcpy(&chances, words + i % kNoiseBlock, sizeof chances);
    return wide_bits(x) + (chances + low);
  }
  FO_HD PairWords rounded(Wide a, Wide b, Index i) const {
    return upper_words(with(a, i), with(b, i + kWide));
  }
};

// How the loop of a step reads and writes one of a rule's states, kPair elements at a time: as it is
// computed,
struct PlainState {
  static constexpr Index kBytes = sizeof(float);
  float* at;

  FO_HD PlainState(const PackedChunk& packed, int s, std::uint16_t*)
      : at(static_cast<float*>(packed.chunk.states[s])) {}
  FO_HD void begin(Index) {}
  FO_HD void read(Index i, Wide& a, Wide& b) const {
    a = load_wide(at + i);
    b = load_wide(at + i + kWide);
  }
  FO_HD void write(Index i, Wide a, Wide b) {
    store_wide(at + i, a);
    store_wide(at + i + kWide, b);
  }
  FO_HD void end(Index, Index) {}
  FO_HD void finish(Index) const {}
};

// as bfloat16 that is rounded by chance,
struct HalvedState {
  static constexpr Index kBytes = sizeof(Bf16);
  std::uint16_t* at;
  Chances<true> chances;

  FO_HD HalvedState(const PackedChunk& packed, int s, std::uint16_t*)
      : at(static_cast<std::uint16_t*>(packed.chunk.states[s])), chances(packed, s) {}
  FO_HD void begin(Index first) { chances.begin(first); }
  FO_HD void read(Index i, Wide& a, Wide& b) const {
    const PairWords words = load_words(at + i);
    a = from_upper<0>(words);
    b = from_upper<1>(words);
  }
  FO_HD void write(Index i, Wide a, Wide b) { store_words(at + i, chances.rounded(a, b, i)); }
  FO_HD void end(Index, Index) {}
  FO_HD void finish(Index) const {}
};

// Of a group that is not whole; out of line, for the others' sake.
template <bool Signed>
__attribute__((noinline)) std::uint16_t largest_of_part(const std::uint16_t* words, Index n) {
  return largest_magnitude<Signed>(words, int(n));
}

// or as bytes. What is written stays in words, of this group and the one before it, until the group's
// exponent is known and the next group is under way: a core then has the one's packing to do while it waits
// for the other's roots and quotients.
template <bool Signed>
struct ByteState {
  using Code = ByteCode<Signed>;
  static constexpr Index kBytes = 1;
  std::uint8_t *at, *exponents;
  std::uint16_t* room;
  Chances<false> chances;
  PairWords base, largest, next_base;

  FO_HD ByteState(const PackedChunk& packed, int s, std::uint16_t* room_)
      : at(static_cast<std::uint8_t*>(packed.chunk.states[s])),
        exponents(packed.exponents[s]),
        room(room_),
        chances(packed, s),
        next_base{} {}
  FO_HD std::uint16_t* words_at(Index i) const { return room + i % (2 * kGroup); }

  FO_HD void begin(Index first) {
    chances.begin(first);
    base = Code::base(exponents[first / kGroup]) - PairWords{};
    largest = PairWords{};
  }
  FO_HD void read(Index i, Wide& a, Wide& b) const {
    const PairWords decoded = Code::decoded(load_bytes<Signed>(at + i), base);
    a = from_upper<0>(decoded);
    b = from_upper<1>(decoded);
  }
  FO_HD void write(Index i, Wide a, Wide b) {
    const PairWords pair = chances.rounded(a, b, i), m = Code::magnitude(pair);
    largest = m > largest ? m : largest;
    store_words(words_at(i), pair);
  }
  // The group at `first`, of which n elements count, has been written.
  FO_HD void end(Index first, Index n) {
    const std::uint16_t most =
        n < kGroup ? largest_of_part<Signed>(words_at(first), n) : largest_word(largest);
    const std::uint8_t exponent = Code::exponent(most);
    exponents[first / kGroup] = exponent;
    next_base = Code::base(exponent) - PairWords{};
  }
  // The bytes of 2 kPair elements of the group that ended last.
  FO_HD void finish(Index i) const {
    const std::uint16_t* const from = words_at(i);
    store_bytes(at + i, Code::code(load_words(from), next_base),
                Code::code(load_words(from + kPair), next_base));
  }
};

template <class Rule, class... State>
FO_HD void update_pair(const Common<Wide>& common, const Rule& rule, float* p, const float* g, Index i,
                       State&... state) {
  Wide of[2][sizeof...(State)];
  int s = 0;
  ((state.read(i, of[0][s], of[1][s]), ++s), ...);
  for (int half = 0; half < 2; ++half) {
    float* const at = p + i + half * kWide;
    const Wide old = load_wide(at);
    const Wide u = rule(common.template gradient<false>(load_wide(g + i + half * kWide), old), old, of[half]);
    store_wide(at, common.parameter(old, u));
  }
  s = 0;
  ((state.write(i, of[0][s], of[1][s]), ++s), ...);
}

// Groups; the arrays of the last one have room for a whole one.
template <class Rule, class... State>
FO_HD void update_groups(const Common<Wide>& common, const Rule& rule, const StepChunk& chunk,
                         State... state) {
  float* const p = static_cast<float*>(chunk.p);
  const float* const g = static_cast<const float*>(chunk.g);
  const Index n = chunk.n;
  Index first = 0;
  for (; first < n; first += kGroup) {
    (state.begin(first), ...);
    for (Index i = first; i < first + kGroup; i += 2 * kPair) {
      prefetch(p + i);
      prefetch(g + i);
      (prefetch(state.at + i), ...);
      update_pair(common, rule, p, g, i, state...);
      update_pair(common, rule, p, g, i + kPair, state...);
      if (first > 0) (state.finish(i - kGroup), ...);
    }
    (state.end(first, n - first < kGroup ? n - first : kGroup), ...);
  }
  for (Index i = first - kGroup; i < first; i += 2 * kPair) (state.finish(i), ...);
}

template <class Rule, class... State>
struct PackedStep {
  static constexpr int kStates = sizeof...(State);
  static constexpr Index kBytes[] = {State::kBytes...};

  __attribute__((noinline)) static void groups(const PackedChunk& packed, const double* coefs) {
    [&]<int... S>(std::integer_sequence<int, S...>) {
      alignas(64) std::uint16_t words[kStates][2 * kGroup];
      update_groups(Common<Wide>(coefs), Rule(coefs + kCommonCoefs), packed.chunk,
                    State(packed, S, words[S])...);
    }(std::make_integer_sequence<int, kStates>());
  }

  static void step(const PackedChunk& packed, const double* coefs) {
    const Index n = packed.chunk.n, whole = n / kGroup * kGroup, rest = n - whole;
    PackedChunk part = packed;
    part.chunk.n = whole;
    if (whole) groups(part, coefs);
    if (rest) last_group(packed, whole, rest, coefs);
  }

  // A group that is not whole, where there is room for a whole one.
  static void last_group(const PackedChunk& packed, Index first, Index n, const double* coefs) {
    alignas(64) float rooms[kStates + 2][kGroup] = {};
    float *const p = rooms[kStates], *const g = rooms[kStates + 1];
    const std::size_t bytes = std::size_t(n) * sizeof(float);
    Noise noise[1][4];
    PackedChunk part = packed;
    part.noise = noise;
    part.chunk.n = n;
    part.chunk.p = std::memcpy(p, static_cast<float*>(packed.chunk.p) + first, bytes);
    part.chunk.g = std::memcpy(g, static_cast<const float*>(packed.chunk.g) + first, bytes);
    for (int s = 0; s < kStates; ++s) {
      part.chunk.states[s] = std::memcpy(rooms[s], state_at(packed, s, first), std::size_t(n * kBytes[s]));
      if (kBytes[s] < PlainState::kBytes)
        noise[0][s] = packed.noise[first / kNoiseBlock][s].from(first % kNoiseBlock);
      if (kBytes[s] == 1) part.exponents[s] += first / kGroup;
    }
    groups(part, coefs);
    std::memcpy(static_cast<float*>(packed.chunk.p) + first, p, bytes);
    for (int s = 0; s < kStates; ++s)
      std::memcpy(state_at(packed, s, first), rooms[s], std::size_t(n * kBytes[s]));
  }
  static char* state_at(const PackedChunk& packed, int s, Index first) {
    return static_cast<char*>(packed.chunk.states[s]) + first * kBytes[s];
  }
};

template <template <class> class Rule, int S>
constexpr Packable kind() {
  return S < Rule<float>::states.size ? packable(Rule<float>::states, S) : Packable::no;
}

template <Packable Kind, bool Bytes>
using StateOf =
    std::conditional_t<Kind == Packable::no, PlainState,
                       std::conditional_t<Bytes, ByteState<Kind == Packable::with_sign>, HalvedState>>;
template <template <class> class Rule, bool Bytes, int... S>
constexpr PackedStepKernel step_of(std::integer_sequence<int, S...>) {
  return PackedStep<Rule<Wide>, StateOf<kind<Rule, S>(), Bytes>...>::step;
}

constexpr Stored as_byte(Packable kind) {
  return kind == Packable::no          ? Stored::as_computed
         : kind == Packable::with_sign ? Stored::signed_byte
                                       : Stored::unsigned_byte;
}
constexpr Stored as_half(Packable kind) { return kind == Packable::no ? Stored::as_computed : Stored::bf16; }

template <template <class> class Rule>
constexpr PackedStepKernels kernels_of() {
  constexpr Packable kinds[] = {kind<Rule, 0>(), kind<Rule, 1>(), kind<Rule, 2>(), kind<Rule, 3>()};
  constexpr bool any = kinds[0] != Packable::no || kinds[1] != Packable::no || kinds[2] != Packable::no ||
                       kinds[3] != Packable::no;
  if constexpr (any) {
    constexpr std::make_integer_sequence<int, Rule<float>::states.size> states;
    return {{{{as_half(kinds[0]), as_half(kinds[1]), as_half(kinds[2]), as_half(kinds[3])},
              step_of<Rule, false>(states)},
             {{as_byte(kinds[0]), as_byte(kinds[1]), as_byte(kinds[2]), as_byte(kinds[3])},
              step_of<Rule, true>(states)}}};
  } else {
    return {};
  }
}

template <class List>
struct Table;
template <template <class> class... Rule>
struct Table<Formulas<Rule...>> {
  static constexpr PackedStepKernels rows[] = {kernels_of<Rule>()...};
};

}  // namespace

const PackedStepKernels* packed_step_table() { return Table<Rules>::rows; }

}  // namespace FASTOPT_ISA
}  // namespace fastopt
