// The scale of a loss, and how it changes from step to step.
#pragma once

#include "math.hpp"

namespace fastopt {

// As it lies in an array of float64.
struct LossScale {
  double scale;
  double growth_tracker;  // updates since the last one that changed the scale
  double found_inf;       // not 0: a gradient was not finite since the last update
};

struct ScaleUpdate {
  double growth_factor, backoff_factor, growth_interval;
};

// torch.amp.GradScaler.update, but that the scale stays one that float32 holds: kernels multiply by its
// inverse in that.
FO_HD LossScale updated(LossScale s, const ScaleUpdate& by) {
  constexpr double largest = 3.4028234663852886e38;
  if (s.found_inf != 0.0) return {s.scale * by.backoff_factor, 0.0, 0.0};
  s.growth_tracker += 1.0;
  if (s.growth_tracker < by.growth_interval) return s;
  const double grown = s.scale * by.growth_factor;
  return {grown <= largest ? grown : s.scale, 0.0, 0.0};
}

}  // namespace fastopt
