"""Optimizers, learning rate schedules, gradient clipping and scaling, averages of weights."""

from fastopt.optim import lr_scheduler
from fastopt.optim.adabelief import AdaBelief
from fastopt.optim.adadelta import Adadelta
from fastopt.optim.adagrad import Adagrad
from fastopt.optim.adam import Adam
from fastopt.optim.adamax import Adamax
from fastopt.optim.adamw import AdamW
from fastopt.optim.base import Optimizer
from fastopt.optim.clip import clip_grad_norm_, clip_grad_value_, get_total_norm
from fastopt.optim.ema import WeightAverage
from fastopt.optim.groups import param_groups
from fastopt.optim.lbfgs import LBFGS
from fastopt.optim.lion import Lion
from fastopt.optim.nadam import NAdam
from fastopt.optim.radam import RAdam
from fastopt.optim.rmsprop import RMSprop
from fastopt.optim.rprop import Rprop
from fastopt.optim.scaler import GradScaler
from fastopt.optim.sgd import SGD

__all__ = [
    "LBFGS",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GradScaler",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "WeightAverage",
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_total_norm",
    "lr_scheduler",
    "param_groups",
]
