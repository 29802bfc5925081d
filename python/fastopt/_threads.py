"""The number of threads, and the limits that threadpoolctl sets on it."""

from __future__ import annotations

from fastopt import _core


def get_num_threads() -> int:
    """Return the number of threads that kernels run on, the caller's included."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads that kernels run on.

    The default is ``OMP_NUM_THREADS``, else the number of CPUs this process may use. Results do not depend
    on it.

    Parameters
    ----------
    n : int
        At least 1; beyond 256 it counts as 256.

    Raises
    ------
    ValueError
        `n` is less than 1.
    """
    _core.set_num_threads(n)


def _register_with_threadpoolctl() -> None:
    """Make ``threadpoolctl.threadpool_limits`` reach our pool, where that package is installed."""
    try:
        import threadpoolctl
    except ImportError:
        return
    if not hasattr(threadpoolctl, "register"):
        return

    class FastoptController(threadpoolctl.LibController):  # type: ignore[misc]
        """Tell threadpoolctl how to find and limit the pool of fastopt's extension module."""

        user_api = "fastopt"
        internal_api = "fastopt"
        filename_prefixes = ("_core",)
        check_symbols = ("fastopt_get_num_threads", "fastopt_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.fastopt_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.fastopt_set_num_threads(num_threads)

        def get_version(self) -> str:
            return str(_core.__version__)

    threadpoolctl.register(FastoptController)


_register_with_threadpoolctl()
