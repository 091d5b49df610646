"""`from_numpyro`: NumPyro models and guides as programs, unchanged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ppl.bridges.numpyro_messengers import Initializer, Translator
from ppl.program import Bound, Program


def from_numpyro(fn: Callable[..., Any]) -> NumPyroProgram:
    """Make a program of an unchanged NumPyro model or guide.

    `sample`, `factor`, `deterministic`, `plate` (with or without subsampling), `subsample`, `param`, `obs_mask`, NumPyro's
    `scan` and `cond`, JAX's control flow, and handlers used inside the model (`scale`, `mask`, `reparam`, `condition`,
    `substitute`, `scope`, `block`, ...) keep their meaning. What differs:

    - An observation may have leading dimensions beyond its distribution (iid draws, as in NumPyro). Any other broadcasting
      is refused.
    - The indices that a subsampling plate draws are in the trace under the plate's name: a model that scores a guide's
      trace uses the guide's minibatch, and draws its own if the guide has no such plate.
    - `param` statements take *unconstrained* values, from `params=`; `init_params` makes the dict of them. A model that has
      an argument called `params` itself must take it by position.
    - Latents marked `infer={"enumerate": ...}` are latents like any other, in a `scan` too.
    - Draws come from the program's key. Keys given inside of the model (`handlers.seed`, `rng_key=`) fix only what it hides
      from the program, such as statements in `handlers.block`.
    - Latents of a guide that the model does not have (`"_auto_latent"` of an autoguide) have to be taken out of the trace
      before the model scores it: `trace.pop("_auto_latent")`.
    - Values of a `scan(..., reverse=True)` stand in the trace in the order of its `xs`.

    Args:
        fn: a function with NumPyro statements, or anything callable that makes them (a handler around a model, an
            initialized autoguide).

    Returns:
        A program: `prog(*args, params=None, **kwargs)` is a bound program with everything that comes with one.

    Raises:
        NumPyroError: where the program is used, for a statement without a right translation (`prng_key`, `mutable`,
            handlers that do not fit a `scan`, statements of other libraries).
        MissingParameterError: where the program is used, for a `param` without a value.
        ObservationShapeError: where the program is used, for an observation that NumPyro would broadcast.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist, ppl
        >>> from ppl.bridges.from_numpyro import from_numpyro
        >>> def model(data):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("N", len(data)):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=data)
        >>> def guide(data):
        ...     scale = numpyro.param("scale", 0.5, constraint=dist.constraints.positive)
        ...     numpyro.sample("mean", dist.Normal(numpyro.param("loc", 0.0), scale))
        >>> target, family, data = from_numpyro(model), from_numpyro(guide), jax.numpy.ones(3)
        >>> params = family.init_params(jax.random.key(0), data)
        >>> print({name: f"{value:.3f}" for name, value in params.items()})
        {'scale': '-0.693', 'loc': '0.000'}
        >>> @ppl.expectation
        ... def elbo(params):
        ...     trace, log_q = ppl.simulate(family(data, params=params))
        ...     return ppl.log_density(target(data), trace) - log_q
        >>> value, grad = elbo.value_and_grad(jax.random.key(1), params)
        >>> sorted(grad)
        ['loc', 'scale']
    """
    return NumPyroProgram(fn)


class NumPyroProgram(Program):
    """A NumPyro model or guide as a program. See `from_numpyro`."""

    def __call__(self, *args: Any, params: Mapping[str, Any] | None = None, **kwargs: Any) -> Bound:
        """Bind the arguments, and the unconstrained values of `param` statements by name (more than needed is fine)."""

        @functools.wraps(self.function, updated=())
        def translated(*args: Any, **kwargs: Any) -> Any:
            with Translator(params or {}):
                return self.function(*args, **kwargs)

        translated.__name__ = _name(self.function)
        return Bound(translated, args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Program:
        return self if instance is None else NumPyroProgram(functools.partial(self.function, instance))

    def init_params(self, key: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Initial values of all `param` statements, unconstrained, by name.

        Runs the function once with these arguments (an autoguide is set up by it).

        Args:
            key: a PRNG key, for initial values that are functions of one.
            *args, **kwargs: as in a call.

        Returns:
            A dict of floating-point arrays. Parameters of networks, such as `flax_module`'s `"net$params"`, are trees of
            them.

        Raises:
            NumPyroError: a statement has no right translation, or an initial value is computed in a loop's body.
            MissingParameterError: a parameter has no initial value.
            SupportError: an initial value lies outside of its constraint.

        Example:
            >>> import jax, numpyro, numpyro.distributions as dist
            >>> from ppl.bridges.from_numpyro import from_numpyro
            >>> def guide():
            ...     weights = numpyro.param("weights", jax.numpy.ones(3) / 3, constraint=dist.constraints.simplex)
            ...     numpyro.sample("which", dist.Categorical(weights))
            >>> from_numpyro(guide).init_params(jax.random.key(0))["weights"].shape
            (2,)
        """
        initializer = Initializer(key)
        with initializer:
            self.function(*args, **kwargs)
        return initializer.unconstrained()

    def __repr__(self) -> str:
        return f"from_numpyro({_name(self.function)})"


def _name(function: Any) -> str:
    while not hasattr(function, "__name__"):
        inner = getattr(function, "fn", None) or getattr(function, "func", None)  # a handler, a partial
        if inner is None:
            return type(function).__name__
        function = inner
    return function.__name__
