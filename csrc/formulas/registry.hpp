// The one place of registration: a formula's position here is its row in every kernel table.
#pragma once

#include "formulas/activations.hpp"
#include "formulas/losses.hpp"
#include "formulas/rules/adabelief.hpp"
#include "formulas/rules/adadelta.hpp"
#include "formulas/rules/adagrad.hpp"
#include "formulas/rules/adam.hpp"
#include "formulas/rules/adamax.hpp"
#include "formulas/rules/adan.hpp"
#include "formulas/rules/ademamix.hpp"
#include "formulas/rules/adopt.hpp"
#include "formulas/rules/amsgrad.hpp"
#include "formulas/rules/asgd.hpp"
#include "formulas/rules/ftrl.hpp"
#include "formulas/rules/lamb.hpp"
#include "formulas/rules/lion.hpp"
#include "formulas/rules/momentum.hpp"
#include "formulas/rules/nadam.hpp"
#include "formulas/rules/prodigy.hpp"
#include "formulas/rules/radam.hpp"
#include "formulas/rules/rmsprop.hpp"
#include "formulas/rules/rprop.hpp"
#include "formulas/rules/schedule_free.hpp"
#include "formulas/rules/sgd.hpp"
#include "formulas/rules/sophia.hpp"
#include "formulas/rules/yogi.hpp"

namespace fastopt {
inline namespace FASTOPT_ISA {

using Activations = Formulas<Relu, LeakyRelu, Sigmoid, Tanh, Gelu, GeluTanh, Silu, Elu, Softplus>;

using Losses = Formulas<Mse, L1, SmoothL1, Huber, Bce, BceWithLogits, KlDiv, KlDivLog, PoissonNll, Quantile,
                        SigmoidFocal>;

using Rules = Formulas<Sgd, Momentum, Nesterov, Adagrad, Adadelta, Rmsprop, RmspropMomentum, RmspropCentered,
                       RmspropCenteredMomentum, Adam, Amsgrad, Nadam, Adamax, Radam, Rprop, Lion, Adabelief,
                       Asgd, Yogi, Adopt, Ademamix, Adan, Sophia, ScheduleFreeSgd, ScheduleFreeAdamw, Lamb,
                       Prodigy, ProdigyEstimate, Ftrl, FtrlPower>;

// Whether steps depend on the norm of the rule's direction. A first pass makes it, which changes no state,
// and the second makes it again.
template <template <class> class Rule>
inline constexpr bool measures = requires { Rule<double>::scaled_by_norm; };

}  // namespace FASTOPT_ISA
}  // namespace fastopt
