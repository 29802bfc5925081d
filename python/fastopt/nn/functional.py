"""`fastopt.functional` where torch has it."""

from fastopt.functional import *  # noqa: F403
from fastopt.functional import __all__ as __all__
