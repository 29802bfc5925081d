"""Functions on the gradients of parameters, where torch has them."""

from fastopt.optim.clip import clip_grad_norm_, clip_grad_value_, get_total_norm

__all__ = ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"]
