// The step of tensors that are stored in fewer bytes than they are computed with. Where only averages are,
// the rule has kernels of its own. Otherwise a tile of each packed array is unpacked into floats that stay in
// the first-level cache, the rule's float kernel updates those, and they are packed again.
#include <algorithm>

#include "core/buffer.hpp"
#include "core/parallel.hpp"
#include "core/plan.hpp"
#include "formulas/common.hpp"
#include "formulas/packed.hpp"

namespace fastopt {
namespace {

constexpr Index kTile = kNoiseBlock;
static_assert(kTile % kGroup == 0 && kChunk % kTile == 0);

// Rooms that are not a whole number of 4 KiB apart: loads from one would wait for stores to another.
constexpr Index kRoom = kTile + 48;
constexpr int kParameterRoom = 4, kGradientRoom = 5, kRooms = 6;

// Bytes of an element.
Index stored_bytes(Stored stored) {
  return stored == Stored::as_computed ? 4 : stored == Stored::bf16 ? 2 : 1;
}

char* stored_at(void* base, Index element, Stored stored) {
  return static_cast<char*>(base) + element * stored_bytes(stored);
}

std::uint8_t* exponents_at(const Packing& packing, int s, Index element) {
  return packing.exponents[s] ? packing.exponents[s] + element / kGroup : nullptr;
}

}  // namespace

Noise noise(double step, Index array, Index element) {
  struct Tables {
    std::uint32_t words[kNoiseTable];
    std::uint32_t halves[kNoiseTable];
  };
  static constexpr Tables tables = [] {
    Tables made{};
    for (int j = 0; j < kNoiseTable; ++j) {
      made.words[j] = noise_word(std::uint32_t(j));
      made.halves[j] = made.words[j] >> kHalfNoiseShift;
    }
    return made;
  }();
  const NoiseStart start =
      noise_start(std::uint64_t(step), std::uint64_t(array), std::uint64_t(element / kNoiseBlock));
  return Noise{tables.words, tables.halves, start.low}.from(start.place + element % kNoiseBlock);
}

// The kernel that takes states as they are stored; null: there is none.
PackedStepKernel StepPlan::packed_kernel(const PlanTensor& tensor, const double* row) const {
  const Packing& packing = tensor.packing;
  if (tensor.dtype != DType::f32 || tensor.ema || packing.shadow || is_bounded(row)) return nullptr;
  for (const auto& kernel : kernels().packed_step[rule_].at)
    if (std::equal(packing.states, packing.states + 4, kernel.stored)) return kernel.run;
  return nullptr;
}

void StepPlan::update_packed(Index tensor_, Index begin, Index end, const void* grad,
                             const double* row) const {
  const PlanTensor& tensor = tensors_[std::size_t(tensor_)];
  const PackedStepKernel run = packed_kernel(tensor, row);
  if (!run) return update_tiles(tensor_, begin, end, grad, row);
  Noise blocks[kChunk / kNoiseBlock][4];
  PackedChunk piece{{element_at(tensor.p, begin, DType::f32), grad, {}, nullptr, end - begin}, {}, blocks};
  for (int s = 0; s < 4; ++s) {
    const Stored stored = tensor.packing.states[s];
    if (!tensor.states[s]) continue;
    piece.chunk.states[s] = stored_at(tensor.states[s], begin, stored);
    if (stored == Stored::as_computed) continue;
    piece.exponents[s] = exponents_at(tensor.packing, s, begin);
    for (Index first = begin; first < end; first += kNoiseBlock)
      blocks[(first - begin) / kNoiseBlock][s] = noise(row[kStep], tensor_ * kNoiseSlots + s, first);
  }
  run(piece, row);
}

void StepPlan::update_tiles(Index tensor_, Index begin, Index end, const void* grad,
                            const double* row) const {
  const PlanTensor& tensor = tensors_[std::size_t(tensor_)];
  const Packing& packing = tensor.packing;
  const PackingKernels& pack = *kernels().packing;
  const bool stages = item_bytes(tensor.dtype) == 2;
  const DType dtype = stages ? DType::f32 : tensor.dtype;
  const StepKernel update = kernels().step[rule_].at[int(dtype)].at[tensor.ema != nullptr][is_bounded(row)];
  alignas(64) float rooms[kRooms][kRoom];

  for (Index first = begin; first < end;) {
    const Index n = std::min(end, (first / kTile + 1) * kTile) - first;
    const auto chances = [&](int slot) { return noise(row[kStep], tensor_ * kNoiseSlots + slot, first); };
    void* const p = element_at(tensor.p, first, tensor.dtype);
    const void* const g = element_at(grad, first - begin, tensor.dtype);
    StepChunk piece{p, g, {}, element_at(tensor.ema, first, state_dtype(tensor.dtype)), n};
    for (int s = 0; s < 4; ++s) {
      if (!tensor.states[s]) continue;
      char* const state = stored_at(tensor.states[s], first, packing.states[s]);
      piece.states[s] = state;
      if (packing.states[s] == Stored::as_computed) continue;
      piece.states[s] = rooms[s];
      pack.decode[int(packing.states[s])](state, exponents_at(packing, s, first), rooms[s], n);
    }
    if (stages) {
      pack.widen[int(tensor.dtype)](g, rooms[kGradientRoom], n);
      if (packing.remainder) {
        pack.join(p, packing.remainder + first, rooms[kParameterRoom], n);
      } else {
        pack.widen[int(tensor.dtype)](p, rooms[kParameterRoom], n);
      }
      piece.p = rooms[kParameterRoom];
      piece.g = rooms[kGradientRoom];
    }

    update(piece, row);

    for (int s = 0; s < 4; ++s) {
      if (!tensor.states[s] || packing.states[s] == Stored::as_computed) continue;
      pack.encode[int(packing.states[s])](rooms[s], chances(s),
                                          stored_at(tensor.states[s], first, packing.states[s]),
                                          exponents_at(packing, s, first), n);
    }
    if (packing.remainder) {
      pack.split(rooms[kParameterRoom], p, packing.remainder + first, n);
    } else if (packing.by_chance) {
      pack.encode[int(Stored::bf16)](rooms[kParameterRoom], chances(kParameterSlot), p, nullptr, n);
    } else if (stages) {
      pack.narrow[int(tensor.dtype)](rooms[kParameterRoom], p, n);
    }
    if (packing.shadow)
      pack.narrow[int(packing.shadow_dtype)](static_cast<const float*>(piece.p),
                                             element_at(packing.shadow, first, packing.shadow_dtype), n);
    first += n;
  }
}

// The whole chunk is unpacked at once: the lanes of its sums are then those of a chunk that is not packed.
Measured StepPlan::measure_packed(const PlanChunk& chunk, const void* grad, const double* row) const {
  const PlanTensor& tensor = tensors_[std::size_t(chunk.tensor)];
  const Packing& packing = tensor.packing;
  const PackingKernels& pack = *kernels().packing;
  const MeasureKernels& measure = kernels().measure[rule_];
  const Index n = chunk.end - chunk.begin;
  Buffer rooms;
  float* const room = reinterpret_cast<float*>(rooms.reserve(kRooms * n * Index(sizeof(float))));
  DType dtype = tensor.dtype;
  StepChunk piece{element_at(tensor.p, chunk.begin, dtype), grad, {}, nullptr, n};
  for (int s = 0; s < measure.states; ++s) {
    const Stored stored = packing.states[s];
    piece.states[s] = stored_at(tensor.states[s], chunk.begin, stored);
    if (stored == Stored::as_computed) continue;
    pack.decode[int(stored)](piece.states[s], exponents_at(packing, s, chunk.begin), room + s * n, n);
    piece.states[s] = room + s * n;
  }
  if (packing.remainder) {
    pack.join(piece.p, packing.remainder + chunk.begin, room + kParameterRoom * n, n);
    pack.widen[int(dtype)](grad, room + kGradientRoom * n, n);
    piece.p = room + kParameterRoom * n;
    piece.g = room + kGradientRoom * n;
    dtype = DType::f32;
  }
  return measure.at[int(dtype)].at[is_bounded(row)](piece, row);
}

}  // namespace fastopt
