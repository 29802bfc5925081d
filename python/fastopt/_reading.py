"""Models and losses read as what a native program consists of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fastopt import functional, nn
from fastopt._device import as_data, device_name, is_device_array, library, moved
from fastopt.nn.activations import Activation
from fastopt.tensor import Tensor, to_array

Array = npt.NDArray[Any]

_SOFT: dict[Any, str] = {nn.Softmax.forward: "softmax", nn.LogSoftmax.forward: "log_softmax"}


def key_of(a: Array) -> tuple[int, tuple[int, ...]]:
    """What tells one parameter's memory from another's."""
    begin = library(a).address(a) if is_device_array(a) else a.__array_interface__["data"][0]
    return begin, a.shape


@dataclass
class Layer:
    """One layer: a kind, for linear layers with the activation and dropout that follow.

    Weight and bias of a batch normalisation, `norm`, are the layer's.
    """

    kind: str
    path: str
    weight: nn.Parameter | None = None
    bias: nn.Parameter | None = None
    activation: str = ""
    params: tuple[float, ...] = ()
    dropout: nn.Dropout | None = None
    norm: nn.BatchNorm1d | None = None
    width_in: int = 0
    width_out: int = 0


@dataclass
class Model:
    """What `read_model` returns.

    Attributes
    ----------
    flatten : bool
        Samples of any shape are flattened first.
    matrix_only : str
        Why the input may have two dimensions only; empty where it may have more.
    """

    layers: list[Layer] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    flatten: bool = False
    matrix_only: str = ""

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.parameters[0].data.dtype
        return dtype

    @property
    def device(self) -> str:
        """Where the model is: "cpu", "cuda:0"."""
        return device_name(self.parameters[0].data)

    @property
    def norms(self) -> list[nn.BatchNorm1d]:
        return [layer.norm for layer in self.layers if layer.norm is not None]

    @property
    def buffers(self) -> list[tuple[str, Tensor]]:
        """The running statistics, with their names."""
        return [
            (f"{layer.path}.{name}".lstrip("."), buffer)
            for layer in self.layers
            if layer.norm is not None
            for name, buffer in layer.norm.named_buffers()
        ]

    @property
    def dropouts(self) -> list[nn.Dropout]:
        return [layer.dropout for layer in self.layers if layer.dropout is not None]

    def uses(self) -> Counter[Any]:
        """How many layers use each parameter, by its `key_of`."""
        both = [p.data for layer in self.layers for p in (layer.weight, layer.bias) if p is not None]
        return Counter([key_of(a) for a in both])

    def check_arrays(self) -> None:
        """Refuse parameters and running statistics that the kernels cannot use in place."""
        named: list[tuple[str, Tensor]] = list(zip(self.names, self.parameters, strict=True))
        for name, p in named + self.buffers:
            a = p.data
            counts = name.endswith("num_batches_tracked")
            if counts and a.dtype != np.int64:
                raise TypeError(f"compile: {name} is {a.dtype}, expected int64")
            if not counts and a.dtype not in (np.float32, np.float64):
                raise TypeError(f"compile: {name} is {a.dtype}, expected float32 or float64")
            if not counts and a.dtype != self.dtype:
                raise TypeError(f"compile: {name} is {a.dtype}, {self.names[0]} is {self.dtype}")
            if device_name(a) != self.device:
                raise ValueError(
                    f"compile: {name} is on {device_name(a)}, {self.names[0]} is on {self.device}"
                )
            on_device = is_device_array(a)
            if not (a.flags.c_contiguous and (on_device or (a.flags.aligned and a.flags.writeable))):
                raise ValueError(f"compile: {name} is not a writable C-contiguous array")


def read_model(model: Any) -> Model:
    """Return the layers of a model.

    Raises
    ------
    TypeError
        A module that has no native counterpart, by path and class.
    ValueError
        Widths that do not fit.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compile: model is {type(model).__name__}, expected a Module")
    read = Model()
    _add(model, "", read)
    for layer in read.layers:
        for name, p in (("weight", layer.weight), ("bias", layer.bias)):
            if p is not None and not any(p is known for known in read.parameters):
                read.names.append(f"{layer.path}.{name}".lstrip("."))
                read.parameters.append(p)
    if not read.parameters:
        raise ValueError("compile: the model has no parameters")
    read.check_arrays()
    _set_widths(read.layers)
    uses = read.uses()
    for layer in read.layers:
        for name, p in (("weight", layer.weight), ("bias", layer.bias)):
            if layer.norm is not None and p is not None and uses[key_of(p.data)] > 1:
                raise ValueError(
                    f"compile: {f'{layer.path}.{name}'.lstrip('.')} is another layer's parameter too"
                )
    return read


def _add(module: nn.Module, path: str, read: Model) -> None:
    """Append what a module does to the layers."""
    forward = type(module).forward
    last = read.layers[-1] if read.layers else None
    linear = last if last is not None and last.kind == "linear" and last.dropout is None else None
    own = "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__
    if own:
        _refuse(module, path)
    elif forward is nn.Sequential.forward:
        for name, child in module.named_children():
            _add(child, f"{path}.{name}" if path else name, read)
    elif isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        read.layers.append(Layer("linear", path, module.weight, module.bias))
    elif isinstance(module, nn.BatchNorm1d) and forward is nn.BatchNorm1d.forward:
        if any(norm is module for norm in read.norms):
            raise ValueError(f"compile: {_where(module, path)} is there twice")
        read.matrix_only = f"{_where(module, path)} has its channels in dim 1"
        read.layers.append(Layer("batch_norm", path, module.weight, module.bias, norm=module))
    elif isinstance(module, Activation) and forward is Activation.forward:
        if linear is None or linear.activation:
            linear = Layer("pointwise", path)
            read.layers.append(linear)
        linear.activation, linear.params = module.kernel, tuple([float(v) for v in module.params])
    elif isinstance(module, nn.Dropout) and forward is nn.Dropout.forward:
        if linear is None:
            linear = Layer("pointwise", path)
            read.layers.append(linear)
        linear.dropout = module
    elif isinstance(module, nn.Softmax | nn.LogSoftmax) and forward in _SOFT:
        if module.dim not in (-1, 1):
            raise ValueError(f"compile: {_where(module, path)} has dim {module.dim}, expected -1 or 1")
        if module.dim == 1 and not read.flatten:
            read.matrix_only = f"{_where(module, path)} has dim 1"
        read.layers.append(Layer(_SOFT[forward], path))
    elif isinstance(module, nn.Flatten) and forward is nn.Flatten.forward:
        if (module.start_dim, module.end_dim) != (1, -1):
            raise ValueError(f"compile: {_where(module, path)} has {module.extra_repr()}, expected 1 and -1")
        if all(layer.kind == "pointwise" for layer in read.layers):
            read.flatten = True
        elif not read.flatten:
            read.matrix_only = f"{_where(module, path)} follows a layer"
    elif forward is not nn.Identity.forward:
        _refuse(module, path)


def _where(module: nn.Module, path: str) -> str:
    return f"module '{path}' ({type(module).__name__})" if path else f"the model ({type(module).__name__})"


def _refuse(module: nn.Module, path: str) -> None:
    raise TypeError(
        f"compile: {_where(module, path)} cannot be compiled: expected a Sequential of Linear, BatchNorm1d, "
        "activations, Softmax, LogSoftmax, Dropout, Flatten and Identity, each with its own forward"
    )


def _set_widths(layers: list[Layer]) -> None:
    width = next(_takes(layer) for layer in layers if layer.kind in ("linear", "batch_norm"))
    for layer in layers:
        layer.width_in = width
        if layer.kind in ("linear", "batch_norm") and _takes(layer) != width:
            raise ValueError(
                f"compile: module '{layer.path}' takes {_takes(layer)} features, the one before gives {width}"
            )
        if layer.norm is not None:
            named = [*layer.norm.named_parameters(), *layer.norm.named_buffers()]
            for name, p in named:
                expected = () if name == "num_batches_tracked" else (width,)
                if p.data.shape != expected:
                    where = f"{layer.path}.{name}".lstrip(".")
                    raise ValueError(f"compile: {where} has shape {p.data.shape}, expected {expected}")
        elif layer.weight is not None:
            out = layer.weight.data.shape[0]
            if layer.bias is not None and layer.bias.data.shape != (out,):
                raise ValueError(
                    f"compile: {layer.path}.bias has shape {layer.bias.data.shape}, weight has {out} rows"
                )
            width = out
        layer.width_out = width


def _takes(layer: Layer) -> int:
    """The columns that a layer with a width of its own takes."""
    if layer.norm is not None:
        return layer.norm.num_features
    assert layer.weight is not None
    width: int = layer.weight.data.shape[1]
    return width


# ------------------------------------------------------------------------------------------------- losses


@dataclass
class Loss:
    """A loss as the kernels take it; `weight` and `pos_weight` are broadcast to the output's elements."""

    kind: str
    reduction: str
    params: tuple[float, ...] = ()
    class_weight: Array | None = None
    ignore_index: int = -100
    smoothing: float = 0.0
    weight: Array | None = None
    pos_weight: Array | None = None

    @property
    def classes(self) -> bool:
        return self.kind in ("cross_entropy", "nll")


#: The losses of `functional`, for those who pass the function.
_FUNCTIONS: dict[Any, type[nn.Module]] = {
    functional.binary_cross_entropy: nn.BCELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.huber_loss: nn.HuberLoss,
    functional.kl_div: nn.KLDivLoss,
    functional.l1_loss: nn.L1Loss,
    functional.mse_loss: nn.MSELoss,
    functional.nll_loss: nn.NLLLoss,
    functional.poisson_nll_loss: nn.PoissonNLLLoss,
    functional.quantile_loss: nn.QuantileLoss,
    functional.sigmoid_focal_loss: nn.SigmoidFocalLoss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
}


def read_loss(loss_fn: Any, classes: int, dtype: np.dtype[Any], device: str = "cpu") -> Loss:
    """Return the loss behind a module of `nn` or a function of `functional` with its defaults.

    Raises
    ------
    TypeError
        Another loss.
    ValueError
        It is not reduced to one number, or its weights do not fit.
    """
    if callable(loss_fn) and not isinstance(loss_fn, nn.Module) and loss_fn in _FUNCTIONS:
        loss_fn = _FUNCTIONS[loss_fn]()
    forward = getattr(type(loss_fn), "forward", None)
    kind = next((kind for kind in set(_FUNCTIONS.values()) if forward is kind.forward), None)
    if kind is None or "forward" in vars(loss_fn):
        raise TypeError(
            f"compile: loss_fn is {type(loss_fn).__name__}, expected one of "
            + ", ".join(sorted(k.__name__ for k in _FUNCTIONS.values()))
        )
    if loss_fn.reduction == "none":
        raise ValueError("compile: loss_fn has reduction 'none', a step needs one number")
    loss = Loss("", loss_fn.reduction)
    if kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        loss.kind = "nll" if kind is nn.NLLLoss else "cross_entropy"
        loss.ignore_index = int(loss_fn.ignore_index)
        loss.smoothing = float(getattr(loss_fn, "label_smoothing", 0.0))
        loss.class_weight = _numbers(loss_fn.weight, "weight", dtype, device)
        if loss.class_weight is not None and loss.class_weight.shape != (classes,):
            raise ValueError(
                f"compile: loss_fn's weight has shape {loss.class_weight.shape}, "
                f"the model gives {classes} classes"
            )
    elif kind in (nn.BCELoss, nn.BCEWithLogitsLoss):
        loss.kind = "bce" if kind is nn.BCELoss else "bce_with_logits"
        loss.weight = _numbers(loss_fn.weight, "weight", dtype, device)
        if kind is nn.BCEWithLogitsLoss:
            pos_weight = _numbers(loss_fn.pos_weight, "pos_weight", dtype, device)
            scalar = pos_weight is None or pos_weight.ndim == 0
            loss.params = ((1.0 if pos_weight is None else float(pos_weight)) if scalar else 1.0,)
            loss.pos_weight = None if scalar else pos_weight
    elif kind is nn.KLDivLoss:
        loss.kind = "kl_div_log" if loss_fn.log_target else "kl_div"
    elif kind is nn.SmoothL1Loss:
        loss.kind, loss.params = "smooth_l1", (float(loss_fn.beta),)
    elif kind is nn.HuberLoss:
        loss.kind, loss.params = "huber", (float(loss_fn.delta),)
    elif kind is nn.QuantileLoss:
        loss.kind, loss.params = "quantile", (float(loss_fn.quantile),)
    elif kind is nn.SigmoidFocalLoss:
        loss.kind, loss.params = "sigmoid_focal", (float(loss_fn.alpha), float(loss_fn.gamma))
    else:
        names: dict[Any, str] = {nn.MSELoss: "mse", nn.L1Loss: "l1", nn.PoissonNLLLoss: "poisson_nll"}
        loss.kind = names[kind]
    return loss


def _numbers(value: Any, name: str, dtype: np.dtype[Any], device: str) -> Any:
    """Return a copy of a loss's numbers where the model is."""
    if value is None:
        return None
    return moved(as_data(to_array(value, f"loss_fn's {name}")).astype(dtype, order="C"), device)
