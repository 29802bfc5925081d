"""scikit-learn's multilayer perceptrons over the compiled training step: change one import.

``from fastopt.sklearn import MLPClassifier, MLPRegressor`` gives estimators with the arguments, attributes and results
of scikit-learn's classes of the same names, and with keyword arguments that those lack. Needs scikit-learn.
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("fastopt.sklearn needs scikit-learn: pip install 'fastopt[sklearn]'") from error

from fastopt.sklearn.classifier import MLPClassifier
from fastopt.sklearn.progress import Epoch
from fastopt.sklearn.regressor import MLPRegressor

__all__ = ["Epoch", "MLPClassifier", "MLPRegressor"]
