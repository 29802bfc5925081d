"""Optimizers, learning rate schedules, gradient clipping and scaling, averages of weights."""

from fastopt.optim import lr_scheduler
from fastopt.optim.adabelief import AdaBelief
from fastopt.optim.adadelta import Adadelta
from fastopt.optim.adafactor import Adafactor
from fastopt.optim.adagrad import Adagrad
from fastopt.optim.adam import Adam
from fastopt.optim.adamax import Adamax
from fastopt.optim.adamw import AdamW
from fastopt.optim.adan import Adan
from fastopt.optim.ademamix import AdEMAMix
from fastopt.optim.adopt import ADOPT
from fastopt.optim.asgd import ASGD
from fastopt.optim.base import Optimizer
from fastopt.optim.clip import clip_grad_norm_, clip_grad_value_, get_total_norm
from fastopt.optim.ema import WeightAverage
from fastopt.optim.ftrl import Ftrl
from fastopt.optim.groups import param_groups
from fastopt.optim.lamb import LAMB
from fastopt.optim.lars import LARS
from fastopt.optim.lbfgs import LBFGS
from fastopt.optim.lion import Lion
from fastopt.optim.muon import Muon
from fastopt.optim.nadam import NAdam
from fastopt.optim.novograd import NovoGrad
from fastopt.optim.prodigy import Prodigy
from fastopt.optim.radam import RAdam
from fastopt.optim.rmsprop import RMSprop
from fastopt.optim.rprop import Rprop
from fastopt.optim.scaler import GradScaler
from fastopt.optim.schedule_free import AdamWScheduleFree, SGDScheduleFree
from fastopt.optim.sgd import SGD
from fastopt.optim.soap import SOAP
from fastopt.optim.sophia import Sophia
from fastopt.optim.sparse_adam import SparseAdam
from fastopt.optim.wrapper import SAM, Lookahead
from fastopt.optim.yogi import Yogi

__all__ = [
    "ADOPT",
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "SAM",
    "SGD",
    "SOAP",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "Ftrl",
    "GradScaler",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "NovoGrad",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGDScheduleFree",
    "Sophia",
    "SparseAdam",
    "WeightAverage",
    "Yogi",
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_total_norm",
    "lr_scheduler",
    "param_groups",
]
