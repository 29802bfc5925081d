"""fastopt: the training core for NumPy."""

from fastopt import _core
from fastopt._core import __version__

__all__ = ["__version__", "_core"]
