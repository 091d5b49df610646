"""What an estimator is: one or several weighted values in place of a draw."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from ppl.site import Site

SINGLE, PRODUCT, EACH, JOINT = "single", "product", "each", "joint"
"""How the branches of several elements combine. See `Estimator.coupling`."""


class Particle(NamedTuple):
    """A value and the log of its weight for each independent element (`None`: weight one).

    The contract: under automatic differentiation, the value and the gradient of `exp(sum(log_weight)) * k(value)` are unbiased
    for those of `E[k(X)]`, X ~ d(theta), for every function k.
    """

    value: Any
    log_weight: Any = None


class Branches(NamedTuple):
    """Several values for each independent element, with their weights.

    The contract: under automatic differentiation, the value and the gradient of `sum_i weights[i] * k(values[i])` are unbiased
    for those of `E[k(X)]`, X ~ d(theta), for every function k of one element.

    Attributes:
        values: `(branches, *batch_shape, *event_shape)`.
        weights: `(branches, *batch_shape)`; they may be negative.
    """

    values: Any
    weights: Any


class Estimator(Protocol):
    """A gradient estimator. Any object with these members is one.

    The rest of the objective is evaluated once for each branch. Elements on which no common cost depends are branched together,
    so that a plate of independent elements costs no more than one element. What happens to elements that share a cost is said
    by `coupling`:

    - `"single"`: there is one branch; log weights add.
    - `"product"`: the branches enumerate all values, the weights are their probabilities. Every combination of the elements'
      values is evaluated, with the product of the weights.
    - `"each"`: branch 0 is a draw, with a weight of value one; the other branches have weights of value zero. One element
      at a time is replaced, the others keep their draw.
    - `"joint"`: branch i of all elements is evaluated together. The weights have values that are the same constants for
      every element and sum to one over the branches; their gradients add over elements. `axis` may then be the same for several
      sites (a hashable constant): branch i of one goes with branch i of another, as with independent repetitions. With `axis`
      None, branch 0 must be a draw with a weight of value one.

    Weights of couplings `"each"` and `"joint"` have first derivatives alone: a second one raises `EstimatorError`.

    Optional members:

    - `specialize(distribution)`: the estimator for one site, of whose parameters some are constants and others `unknown`.
    - `leave_one_out = True`, with coupling `"joint"` and an `axis`: the gradients of the weights are scores of independent
      draws. Of each, the mean over the other branches is subtracted, with which the others' mean cost is a baseline.
    - `one_element = True`: one of the elements that would branch one by one is chosen at random.
    """

    @property
    def unbiased(self) -> bool:
        """Whether the contract holds exactly."""
        ...

    @property
    def coupling(self) -> str: ...

    @property
    def axis(self) -> Hashable | None: ...

    def refuses(self, distribution: Any, site: Site) -> str | None:
        """Why it cannot serve a distribution, or None. Parameters that are not constant are `unknown`."""
        ...

    def branches(self, distribution: Any) -> int:
        """How many values it gives for one element: what it costs."""
        ...

    def particle(self, key: Any, distribution: Any) -> Particle | Branches:
        """Draw. The distribution's `batch_shape` holds the independent elements: plates first, no `Independent` around it."""
        ...


def specialized(estimator: Estimator, distribution: Any) -> Estimator:
    """The estimator for a site with this distribution."""
    specialize = getattr(estimator, "specialize", None)
    return estimator if specialize is None else specialize(distribution)


def draw_dtype(estimator: Any, dtype: Any) -> Any:
    """The dtype of what an estimator draws in place of a distribution's draw: relaxations draw floating-point numbers."""
    relaxes = getattr(estimator, "relaxes", False) and not jnp.issubdtype(dtype, jnp.inexact)
    return jnp.dtype(jnp.result_type(float)) if relaxes else dtype


def unknown(shape: tuple[int, ...], dtype: Any) -> Any:
    """What stands for a parameter whose value is not known before running."""
    if np.issubdtype(dtype, np.integer):
        return np.full(shape, np.iinfo(dtype).min, dtype)
    return np.full(shape, np.nan if np.issubdtype(dtype, np.inexact) else False, dtype)


def is_unknown(value: Any) -> bool:
    """Whether a parameter was not known before running."""
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.integer):
        return bool(np.any(array == np.iinfo(array.dtype).min))
    return bool(np.issubdtype(array.dtype, np.inexact) and np.any(np.isnan(array)))


class OneValue:
    """Members of estimators that give one value."""

    coupling = SINGLE
    axis: Hashable | None = None
    weighted = True
    baseline: Any = None
    """An array, or one of `ppl.estimators.baselines`: subtracted from what the weight multiplies."""

    def branches(self, distribution: Any) -> int:
        return 1
