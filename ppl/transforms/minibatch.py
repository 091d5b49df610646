"""Sums over a population, from random minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.program import plate
from ppl.subsample import subsample
from ppl.transforms.expectation import Expectation


def minibatch_sum(function: Callable[..., Any], population: Any, batch: int) -> Expectation:
    """The sum of `function(element, *args)` over a population, from a random minibatch of it: an expectation of `*args`.

    A draw is `size / batch` times the sum over `batch` elements, drawn without replacement.

    Args:
        function: of an element and the arguments. It returns one real number, and may draw samples or be an expectation.
        population: arrays with a common leading axis, whose rows are the elements; or a number of elements, whose
            indices the function is then given (for data that are an argument).
        batch: elements drawn, at most the size of the population.

    Raises:
        ValueShapeError: the arrays' leading axes differ, or the batch does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> data = jnp.arange(100.0)
        >>> error = ppl.minibatch_sum(lambda y, mean: (y - mean) ** 2, data, 10)
        >>> value, grad = error.value_and_grad(jax.random.key(0), 50.0, samples=10_000)
        >>> bool(abs(value / 83350.0 - 1.0) < 0.01), bool(abs(grad - 100.0) < 50.0)
        (True, True)
    """
    counted = isinstance(population, int)
    sizes = {population} if counted else {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(population)}
    if len(sizes) != 1 or () in sizes:
        raise errors.ValueShapeError(f"a population is a number, or arrays with one leading axis; their axes are {sizes}")
    size = population if counted else sizes.pop()[0]

    def total(*args: Any, **kwargs: Any) -> Any:
        def of_row(row: Any) -> Any:
            element = row if counted else jax.tree.map(lambda array: jnp.asarray(array)[row], population)
            return function(element, *args, **kwargs)

        rows = subsample("minibatch", size, batch)
        return size / batch * jnp.sum(plate("minibatch", of_row)(rows))

    total.__name__ = total.__qualname__ = f"minibatch_sum({getattr(function, '__name__', 'function')})"
    if not 0 < batch <= size:
        raise errors.ValueShapeError(f"a minibatch of {batch} does not fit a population of {size}")
    return Expectation(total)
