"""Other libraries' optimizers, by their names, arguments and defaults, with their trajectories.

``fo.compat.keras.Adam(params, learning_rate=1e-3)`` is an optimizer of `fastopt.optim` set up so that its steps are
those of Keras's class: where epsilon is added, what a rate multiplies, what averages start from. The result has the
settings, groups, state dictionaries and schedules of its class, here `fastopt.optim.Adam`.

Every preset takes the parameters first, the library's own arguments next, and any further argument of the class in
`fastopt.optim` by name. None of these libraries is needed or imported.

Modules
-------
keras
    Keras 3.
optax
    optax's functions with a rate that is a number.
sklearn
    The solvers of scikit-learn's `MLPClassifier`.
tensorflow
    TensorFlow 1's ``tf.compat.v1.train``.
thinc
    thinc's, which spaCy trains with.
"""

from fastopt.compat import keras, optax, sklearn, tensorflow, thinc

__all__ = ["keras", "optax", "sklearn", "tensorflow", "thinc"]
