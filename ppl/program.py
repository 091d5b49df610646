"""What users write: programs, and the statements in them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.address import flatten, parse
from ppl.choice import require_estimator
from ppl.distributions import corrected
from ppl.estimators.protocol import draw_dtype
from ppl.masks import broadcast, plain
from ppl.site import (
    DETERMINISTIC,
    FACTOR,
    OBSERVED,
    SAMPLE,
    Address,
    Operands,
    PlateAxis,
    Site,
    bind,
    split_estimator,
    user_frame,
)
from ppl.supports import support_of
from ppl.transforms.expand import Inline
from ppl.transforms.interpret import run_staged
from ppl.transforms.log_density import log_density
from ppl.transforms.modify import Modification, prepare
from ppl.transforms.seed import seed
from ppl.transforms.simulate import simulate
from ppl.transforms.values import check_value


class Program:
    """A probabilistic program. Calling it binds its arguments; nothing runs yet."""

    def __init__(self, function: Callable[..., Any]):
        if not callable(function):
            raise TypeError(f"a program is made from a function, got {function!r}")
        self.function = function
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Bound:
        return Bound(self.function, args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Program:
        return self if instance is None else Program(functools.partial(self.function, instance))

    def __repr__(self) -> str:
        return f"program({_name(self.function)})"


def program(function: Callable[..., Any]) -> Program:
    """Make a probabilistic program of a function whose body may call `ppl.sample`.

    Functions, methods, closures, `functools.partial` objects and callable modules all work. Arguments and results are
    any pytrees.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model(scale):
        ...     return ppl.sample("x", dist.Normal(0.0, scale))
        >>> trace, log_p = model(2.0).simulate(jax.random.key(0))
        >>> sorted(trace)
        ['x']
    """
    return Program(function)


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """A program with its arguments. Each method returns a new bound program, or asks something of this one.

    Values are given by address, as keyword arguments or in one nested dict; `"sub/x"` reaches into a program called
    inside, and so does `sub={"x": ...}`.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    modifications: tuple[Modification, ...] = ()

    def condition(self, values: Mapping[str, Any] | None = None, /, **by_address: Any) -> Bound:
        """Observe values: they count in the density and are no longer latent."""
        return self._modified("condition", flatten({**(values or {}), **by_address}))

    def intervene(self, values: Mapping[str, Any] | None = None, /, **by_address: Any) -> Bound:
        """Pearl's do: the sites take these values, whatever their distributions, and do not count in the density."""
        return self._modified("intervene", flatten({**(values or {}), **by_address}))

    def substitute(self, values: Mapping[str, Any] | None = None, /, **by_address: Any) -> Bound:
        """The latent sites take these values where they would be drawn; they stay latent and count in the density."""
        return self._modified("substitute", flatten({**(values or {}), **by_address}))

    def scale(self, factor: Any = None, /, **by_address: Any) -> Bound:
        """Multiply costs (log densities) by a factor: all of the program's, or those at some addresses.

        It never multiplies the scores that gradient estimators use.
        """
        return self._modified("scale", _targets(factor, by_address, "a factor"))

    def mask(self, mask: Any = None, /, **by_address: Any) -> Bound:
        """Count only the sites, or the elements of sites, where the mask is true."""
        return self._modified("mask", _targets(mask, by_address, "a mask"))

    def detach(self, *addresses: str) -> Bound:
        """No gradient flows through the sampling of these sites (of all, if none is named)."""
        return self._modified("detach", {parse(a): True for a in addresses} or {(): True})

    def with_estimators(self, estimators: Any = None, /, **by_address: Any) -> Bound:
        """Choose gradient estimators, without editing the program.

        Args:
            estimators: an estimator for all sites; a function that is given each site's `ppl.SiteDescription` and returns an
                estimator, or None to leave the site alone; or a dict of these by address or prefix, of which the longest
                counts. None in a dict gives the choice back to the library.
            by_address: the same by address.

        Raises:
            UnknownAddressError: the program has no such address (raised where the program is used).
            EstimatorError: what was given is no estimator.

        Example:
            >>> import ppl, ppl.distributions as dist
            >>> @ppl.program
            ... def family(p):
            ...     ppl.sample("weight", dist.Normal(p, 1.0))
            ...     ppl.sample("switch", dist.Bernoulli(logits=p))
            >>> def scores(site):
            ...     return ppl.estimators.ScoreFunction() if site.discrete else None
            >>> objective = ppl.expectation(lambda p: ppl.simulate(family(p).with_estimators(scores))[1])
            >>> [type(row.estimator).__name__ for row in objective.estimators(0.5)]
            ['Reparameterize', 'ScoreFunction']
        """
        return self._modified("with_estimators", _targets(estimators, by_address, "an estimator"))

    def log_density(self, trace: Any) -> Any:
        """See `ppl.log_density`."""
        return log_density(self, trace)

    def simulate(self, key: Any) -> tuple[Any, Any]:
        """A trace drawn with a key, and its log density in nats. See `ppl.simulate`."""
        return seed(simulate)(key, self)

    def sample(self, key: Any) -> Any:
        """The program's result, drawn with a key. Works for programs without a density too (`while_loop`)."""
        return seed(lambda: inline(self, ()))(key)

    def _modified(self, verb: str, values: dict[Address, Any]) -> Bound:
        if not values:
            raise TypeError(f"{verb} needs a value for at least one address")
        return dataclasses.replace(self, modifications=(*self.modifications, Modification(verb, values)))

    def __repr__(self) -> str:
        verbs = "".join(f".{m.verb}(...)" for m in self.modifications)
        return f"{_name(self.function)}(...){verbs}"


def _targets(everywhere: Any, by_address: Mapping[str, Any], what: str) -> dict[Address, Any]:
    if isinstance(everywhere, Mapping):
        return flatten({**everywhere, **by_address})
    if (everywhere is None) == (not by_address):
        raise TypeError(f"give either {what} for the whole program, or one for each of some addresses")
    return {(): everywhere} if everywhere is not None else {parse(a): v for a, v in by_address.items()}


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or type(getattr(function, "func", function)).__name__


def sample(address: str, distribution: Any, obs: Any = None, *, estimator: Any = None) -> Any:
    """Draw a value at an address, or run a program there.

    Args:
        address: unique in the program; `"a/b"` nests.
        distribution: a NumPyro distribution, or a bound program, whose trace then nests under the address.
        obs: an observed value, of exactly the distribution's shape (for a program: a nested dict of them).
        estimator: the gradient estimator of this site; chosen automatically if None. For a program, as `with_estimators`
            takes them.

    Returns:
        The value, `distribution.shape()`, or the program's result.

    Raises:
        DuplicateAddressError: the address is taken (raised where the program is used).
        ObservationShapeError, ValueDtypeError, SupportError: `obs` does not fit the distribution.
        EstimatorError: `estimator` is none.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def inner():
        ...     return ppl.sample("x", dist.Normal(0.0, 1.0))
        >>> @ppl.program
        ... def outer():
        ...     mean = ppl.sample("first", inner()) + ppl.sample("second", inner())
        ...     ppl.sample("y", dist.Normal(mean, 1.0), obs=3.0)
        >>> jax.tree.structure(outer().simulate(jax.random.key(1))[0])
        PyTreeDef({'first': {'x': *}, 'second': {'x': *}})
    """
    path = parse(address)
    if isinstance(distribution, Bound):
        bound = distribution if obs is None else distribution.condition(obs)
        bound = bound if estimator is None else bound.with_estimators(estimator)
        return inline(bound, path)
    where = user_frame()
    require_estimator(estimator, address, where)
    if isinstance(distribution, Program):
        raise TypeError(f"{distribution!r} at {address!r} is not bound: call it with its arguments.\n  {where}")
    if not isinstance(distribution, dist.Distribution):
        raise TypeError(
            f"{address!r} needs a NumPyro distribution or a bound program, got {type(distribution).__name__}.\n  {where}"
        )
    distribution, mask, _ = plain(corrected(distribution))
    mask = broadcast(mask, distribution.batch_shape)
    static, arrays = split_estimator(estimator)
    leaves, tree = jax.tree.flatten(Operands(distribution=distribution, mask=mask, estimator=arrays))
    support, moving = support_of(distribution)
    site = Site(
        address=path,
        kind=SAMPLE,
        tree=tree,
        shape=tuple(distribution.shape()),
        dtype=draw_dtype(estimator, _draw_dtype(distribution)),
        support=support,
        where=where,
        distribution_name=_distribution_name(distribution),
        event_dim=distribution.event_dim,
        estimator=static,
        moving_support=moving,
    )
    if obs is not None:
        if jnp.issubdtype(site.dtype, jnp.integer) and _is_float(obs):
            site = site.replace(dtype=jnp.result_type(obs))  # 0/1 images are often floats; they are scored as they are
        value = check_value(obs, site, site.shape, observed=True, mask=mask)
        leaves, tree = jax.tree.flatten(Operands(distribution=distribution, value=value, mask=mask))
        site = site.replace(kind=OBSERVED, tree=tree)
    return bind(site, leaves)


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)


def _distribution_name(distribution: Any) -> str:
    while isinstance(distribution, dist.Independent | dist.ExpandedDistribution):
        distribution = distribution.base_dist
    name = type(distribution).__name__
    for suffix in ("Probs", "Logits"):
        name = name.removesuffix(suffix)
    return name


@functools.lru_cache(maxsize=4096)
def _drawn(tree: Any, avals: tuple[Any, ...], x64: bool) -> Any:
    def draw(leaves: Any, key: Any) -> Any:
        return jax.tree.unflatten(tree, leaves).sample(key)

    return jax.eval_shape(draw, [jax.ShapeDtypeStruct(*aval) for aval in avals], jax.random.key(0)).dtype


def _draw_dtype(distribution: Any) -> Any:
    if isinstance(distribution, dist.ImproperUniform):
        return jnp.result_type(int if distribution.support.is_discrete else float)
    leaves, tree = jax.tree.flatten(distribution)
    avals = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    try:
        hash(tree)
    except TypeError:
        return _drawn.__wrapped__(tree, avals, False)
    return _drawn(tree, avals, jnp.result_type(float) == jnp.float64)


def factor(name: str, log_weight: Any) -> None:
    """Add `log_weight` (a scalar in nats, or an array to be summed) to the program's log density.

    Example:
        >>> import ppl
        >>> @ppl.program
        ... def penalty():
        ...     ppl.factor("ridge", -2.5)
        >>> float(ppl.log_density(penalty(), {}))
        -2.5
    """
    value_site(name, FACTOR, log_weight)


def deterministic(name: str, value: Any) -> Any:
    """Put a computed array into the trace under a name, and return it. It has no density.

    Example:
        >>> import jax, ppl
        >>> @ppl.program
        ... def named():
        ...     ppl.deterministic("two", 2.0)
        >>> float(named().simulate(jax.random.key(0))[0]["two"])
        2.0
    """
    return value_site(name, DETERMINISTIC, value)


def value_site(name: str, kind: str, value: Any) -> Any:
    where = user_frame()
    try:
        value = jnp.asarray(value)
    except TypeError as error:
        raise errors.ValueDtypeError(f"the value of {name!r} is no array: {value!r}.\n  {where}") from error
    leaves, tree = jax.tree.flatten(Operands(value=value))
    return bind(Site(parse(name), kind, tree, value.shape, value.dtype, None, where), leaves)


def plate(
    name: str, function: Callable[..., Any], *, size: int | None = None, in_axes: Any = 0, out_axes: Any = 0
) -> Callable[..., Any]:
    """Map a function with sites in its body over a batch, as `jax.vmap` does, under a name.

    With `size`, the batch is a random subsample of a population of that many: the costs of the sites inside are
    multiplied by `size` over the length of the batch.

    Args:
        name: what the plate is called in tables and pictures.
        function: of one element of the batch.
        size: number of elements in the population, at least the length of the batch.
        in_axes, out_axes: as in `jax.vmap`.

    Example:
        >>> import jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model(batch):
        ...     mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        ...     def datum(y):
        ...         ppl.sample("y", dist.Normal(mean, 1.0), obs=y)
        ...     ppl.plate("data", datum, size=100)(batch)
        >>> print(f"{ppl.log_density(model(jnp.zeros(10)), {'mean': 0.0}):.2f}")  # one latent, 100 data
        -92.81
    """
    where = user_frame()

    @functools.wraps(function, updated=())
    def mapped(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, Sequence) else (in_axes,) * len(args)
        lengths = {
            jnp.shape(leaf)[axis]
            for arg, axis in zip(args, axes, strict=True)
            if isinstance(axis, int)
            for leaf in jax.tree.leaves(arg)
        }
        if size is not None and any(size < length for length in lengths):
            raise errors.ValueShapeError(
                f"the plate {name!r} has size={size} and a batch of {max(lengths)}: a batch is part of its population."
                f"\n  {where}"
            )
        return jax.vmap(function, in_axes=in_axes, out_axes=out_axes, axis_name=PlateAxis(name, size))(*args)

    return mapped


def inline(bound: Bound, prefix: Address) -> Any:
    """Run a bound program as part of the one that is being traced."""
    prepared = prepare(bound)
    return run_staged(prepared.staged, prepared.rule(Inline(prefix)), prepared.inputs())[0]
