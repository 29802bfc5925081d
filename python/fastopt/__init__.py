"""fastopt: the training core for NumPy."""

from fastopt import _core
from fastopt._core import __version__
from fastopt._threads import get_num_threads, set_num_threads

__all__ = ["__version__", "_core", "get_num_threads", "set_num_threads"]
