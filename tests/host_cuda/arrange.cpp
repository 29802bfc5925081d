// Strided copies with conversion and gathered rows, element by element.
#include <vector>

#include "bits.hpp"
#include "parts.hpp"

namespace fastopt::test {
namespace {

template <class T>
constexpr ItemType kItem = ItemType(int(kDType<T>));
template <>
constexpr ItemType kItem<std::int8_t> = ItemType::i8;
template <>
constexpr ItemType kItem<std::uint8_t> = ItemType::u8;
template <>
constexpr ItemType kItem<std::int16_t> = ItemType::i16;
template <>
constexpr ItemType kItem<std::uint16_t> = ItemType::u16;
template <>
constexpr ItemType kItem<std::int32_t> = ItemType::i32;
template <>
constexpr ItemType kItem<std::uint32_t> = ItemType::u32;
template <>
constexpr ItemType kItem<std::int64_t> = ItemType::i64;
template <>
constexpr ItemType kItem<std::uint64_t> = ItemType::u64;

template <class S>
constexpr bool kStored = requires { Store<S>::from; };

// Any bits, NaNs of every kind among them.
template <class T>
Guarded<T> any_bits(Random& random, Index n) {
  Guarded<T> x(n);
  for (Index i = 0; i < n; ++i) {
    const std::uint64_t bits = random.bits();
    std::memcpy(&x[i], &bits, sizeof(T));
  }
  return x;
}

template <class To, class From>
To expected(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<To, Index>) {
    return Index(x);
  } else if constexpr (kStored<From>) {
    return Store<To>::from(Compute<To>(load(x)));
  } else {
    return Store<To>::from(Compute<To>(x));
  }
}

// Axes in another order, one of them backwards, some of one entry.
template <class To, class From>
void check_copy(Random& random) {
  for (const Index a : {0, 1, 2, 3, 100})
    for (const Index b : {1, 3, 17})
      for (const int way : {0, 1, 2}) {  // dense, transposed, backwards
        const Index n = a * b * 5;
        const Guarded<From> from = any_bits<From>(random, n);
        const Guarded<To> to = any_bits<To>(random, n);
        DeviceCopy copy{from.data(), to.data(),    kItem<From>,      kItem<To>,
                        4,           {a, 1, b, 5}, {b * 5, 7, 5, 1}, {b * 5, 9, 5, 1}};
        if (way == 1) copy.from_strides[0] = 5, copy.from_strides[2] = 5 * a;
        if (way == 2 && n)
          copy.from = from.data() + n - 1, copy.from_strides[0] = -b * 5, copy.from_strides[2] = -5,
          copy.from_strides[3] = -1;
        copy_on_device(copy, nullptr);
        for (Index i = 0; i < a; ++i)
          for (Index j = 0; j < b; ++j)
            for (Index k = 0; k < 5; ++k) {
              const Index at = (i * b + j) * 5 + k;
              const From x = from[way == 0 ? at : way == 1 ? (j * a + i) * 5 + k : n - 1 - at];
              const To want = expected<To>(x);
              CHECK(std::memcmp(&want, &to[at], sizeof(To)) == 0);
            }
      }
}

template <class From>
void check_from(Random& random) {
  check_copy<float, From>(random);
  check_copy<double, From>(random);
  check_copy<Bf16, From>(random);
  check_copy<F16, From>(random);
  if constexpr (!kStored<From>) check_copy<Index, From>(random);
}

void check_axes(Random& random) {
  const Guarded<float> from = random.uniforms<float>(1, -1, 1), to(1);
  copy_on_device({from.data(), to.data(), ItemType::f32, ItemType::f32, 0, {}, {}, {}}, nullptr);  // no axis
  check_same("scalar", to, from);
  // Eight axes, none of which goes together with its neighbour.
  const Guarded<float> wide = random.uniforms<float>(256, -1, 1), reversed(256);
  DeviceCopy copy{wide.data(), reversed.data(), ItemType::f32, ItemType::f32, 8, {}, {}, {}};
  for (int d = 0; d < 8; ++d) copy.shape[d] = 2, copy.from_strides[d] = 1 << d, copy.to_strides[d] = 128 >> d;
  copy_on_device(copy, nullptr);
  for (unsigned i = 0; i < 256; ++i) {
    unsigned mirrored = 0;
    for (int d = 0; d < 8; ++d) mirrored |= (i >> d & 1) << (7 - d);
    CHECK(reversed[i] == wide[mirrored]);
  }
}

void check_gather(Random& random) {
  for (const Index row_bytes : {0, 1, 2, 3, 4, 6, 8, 12, 16, 48, 784, 3136})
    for (const Index rows : {0, 1, 5, 300})
      for (const int way : {0, 1, 2, 3}) {  // in order, from a row on, by an order, by one from an entry on
        const Index all = rows + 11, begin = way % 2 ? 7 : 0;
        const Guarded<std::uint8_t> from = any_bits<std::uint8_t>(random, all * row_bytes);
        const Guarded<std::uint8_t> to = any_bits<std::uint8_t>(random, rows * row_bytes);
        const Guarded<Index> order(all), first(1, begin);
        for (Index i = 0; i < all; ++i) order[i] = random.below(all);
        gather_rows_on_device(from.data(), row_bytes, way < 2 ? nullptr : order.data(),
                              way % 2 ? first.data() : nullptr, rows, to.data(), nullptr);
        for (Index i = 0; i < rows; ++i) {
          const Index row = way < 2 ? begin + i : order[begin + i];
          CHECK(std::memcmp(to.data() + i * row_bytes, from.data() + row * row_bytes,
                            std::size_t(row_bytes)) == 0);
        }
      }
}

}  // namespace

void test_cuda_arrange() {
  Random random(17);
  check_from<float>(random);
  check_from<double>(random);
  check_from<Bf16>(random);
  check_from<F16>(random);
  check_from<std::int8_t>(random);
  check_from<std::uint8_t>(random);
  check_from<std::int16_t>(random);
  check_from<std::uint16_t>(random);
  check_from<std::int32_t>(random);
  check_from<std::uint32_t>(random);
  check_from<std::int64_t>(random);
  check_from<std::uint64_t>(random);
  check_axes(random);
  check_gather(random);
}

}  // namespace fastopt::test
