"""Normalizing flows: neural splines, coupling or autoregressive, by flowjax."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.families.family import Family
from ppl.families.gaussian import LOG_SCALE, joint_family
from ppl.families.latents import latents_of
from ppl.families.start import Centre
from ppl.program import Bound

COUPLING, AUTOREGRESSIVE = "coupling", "autoregressive"


def coupling_flow(
    model: Bound, addresses: Sequence[str] | None = None, *, layers: int = 4, width: int = 32, knots: int = 8
) -> Family:
    """A neural spline flow with coupling layers over all variables without constraints (Durkan et al. 2019).

    Gaussian noise goes through coupling layers, whose monotone rational-quadratic splines on [-4, 4] have parameters that a
    network computes from the other half of the coordinates, with fixed permutations between; then through a scale and a shift.
    At the start the layers are the identity. Drawing and scoring take one pass each. One coordinate alone has nothing to be
    coupled with, so that its spline is the same for all draws.

    Parameters: `{"loc": [D], "log_scale": [D], "flow": {name: array}}`, the weights of flowjax's bijection by name.

    Args:
        model, addresses: as in `ppl.families.full_rank`.
        layers: the number of coupling layers.
        width: of the one hidden layer of each network.
        knots: of each spline.

    Raises:
        ImportError: flowjax is missing.
        FamilyError: as for `ppl.families.full_rank`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0).expand([2])))
        >>> family = ppl.families.coupling_flow(model(), layers=2, width=8)
        >>> trace, log_q = family(family.init(jax.random.key(0))).simulate(jax.random.key(1))
        >>> trace["x"].shape
        (2,)
    """
    return _flow(model, addresses, COUPLING, layers, width, knots)


def autoregressive_flow(
    model: Bound, addresses: Sequence[str] | None = None, *, layers: int = 2, width: int = 32, knots: int = 8
) -> Family:
    """A neural spline flow with autoregressive layers (Kingma et al. 2016; Durkan et al. 2019).

    As `ppl.families.coupling_flow`, but that each coordinate's spline depends on all coordinates of the noise before it. A draw
    with its density takes one pass; the density of another trace takes D passes for each layer.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0).expand([2])))
        >>> family = ppl.families.autoregressive_flow(model(), layers=1, width=8)
        >>> sorted(family.init(jax.random.key(0)))
        ['flow', 'loc', 'log_scale']
    """
    return _flow(model, addresses, AUTOREGRESSIVE, layers, width, knots)


def _flow(model: Bound, addresses: Any, kind: str, layers: int, width: int, knots: int) -> Family:
    for what, number in (("layers", layers), ("width", width), ("knots", knots)):
        if number < 1:
            raise errors.FamilyError(f"{what} of a flow is at least 1, got {number}.")
    latents = latents_of(model, addresses)
    options = (kind, sum(latent.size for latent in latents), layers, width, knots)

    def start(key: Any, centre: Centre) -> Any:
        log_scale = jnp.full(centre.vector.shape, LOG_SCALE, centre.vector.dtype)
        return {"loc": centre.vector, "log_scale": log_scale, "flow": initial_weights(key, *options)}

    arguments = f'params, "{kind}", layers={layers}, width={width}, knots={knots}'
    return joint_family(model, latents, f"ppl.families.flow({arguments})", start, f"{kind}_flow")


def flow(params: Any, kind: str, *, layers: int, width: int, knots: int) -> dist.Distribution:
    """The distribution of a flow's vector: Gaussian noise through spline layers, a scale and a shift.

    Args:
        params: `{"loc": [D], "log_scale": [D], "flow": weights}`, as `ppl.families.coupling_flow` makes them.
        kind: "coupling" or "autoregressive".
        layers, width, knots: as there.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0).expand([2])))
        >>> params = ppl.families.coupling_flow(model(), layers=1, width=8).init(jax.random.key(0))
        >>> ppl.families.flow(params, "coupling", layers=1, width=8, knots=8).event_shape
        (2,)
    """
    loc = jnp.asarray(params["loc"])
    noise = dist.Normal(jnp.zeros_like(loc), 1.0).to_event(1)
    spline = SplineTransform(params["flow"], (kind, loc.shape[0], layers, width, knots))
    affine = dist.transforms.AffineTransform(loc, jnp.exp(params["log_scale"]))
    return dist.TransformedDistribution(noise, [spline, affine])


class SplineTransform(dist.transforms.Transform):
    """flowjax's bijection as one of NumPyro's: `weights` by name, `options` say which bijection."""

    domain = dist.constraints.real_vector
    codomain = dist.constraints.real_vector

    def __init__(self, weights: Any, options: tuple[Any, ...]):
        self.weights = weights
        self.options = options

    def tree_flatten(self) -> Any:
        return (self.weights,), (("weights",), {"options": self.options})

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, SplineTransform) and self.options == other.options and self.weights is other.weights

    def __hash__(self) -> int:
        return hash(self.options)

    def _bijection(self) -> Any:
        import equinox
        import paramax

        static, names, tree = _skeleton(*self.options)
        arrays = jax.tree.unflatten(tree, [self.weights[name] for name in names])
        return paramax.unwrap(equinox.combine(arrays, static))

    def __call__(self, x: Any) -> Any:
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x: Any) -> Any:
        return _mapped(self._bijection().transform_and_log_det, x)

    def _inverse(self, y: Any) -> Any:
        return _mapped(self._bijection().inverse_and_log_det, y)[0]

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        return self.call_with_intermediates(x)[1] if intermediates is None else intermediates


def _mapped(function: Any, x: Any) -> Any:
    for _ in range(jnp.ndim(x) - 1):
        function = jax.vmap(function)
    return function(x)


def _make(key: Any, kind: str, dimension: int, layers: int, width: int, knots: int) -> Any:
    try:
        from flowjax import bijections, distributions, flows
    except ImportError as error:
        raise ImportError("normalizing flows need flowjax: pip install 'ppl[flows]'.") from error
    make = {COUPLING: flows.coupling_flow, AUTOREGRESSIVE: flows.masked_autoregressive_flow}
    if kind not in make:
        raise errors.FamilyError(f'the kind of a flow is "{COUPLING}" or "{AUTOREGRESSIVE}", got {kind!r}.')
    spline = bijections.RationalQuadraticSpline(knots=knots, interval=4)
    base: Any = distributions.StandardNormal((dimension,))  # type: ignore[call-arg]
    made = make[kind](key, base_dist=base, transformer=spline, flow_layers=layers, nn_width=width, invert=False)
    return made.bijection


@functools.lru_cache(maxsize=64)
def _skeleton(*options: Any) -> tuple[Any, list[str], Any]:
    """What of a bijection is no weight (its permutations are fixed), and the names and tree of what is."""
    # A thread of its own stands outside of all tracing, in which flowjax would make tracers of its permutations.
    with concurrent.futures.ThreadPoolExecutor(1) as outside:
        return outside.submit(lambda: _taken_apart(_make(jax.random.key(0), *options))[1:]).result()


def _taken_apart(bijection: Any) -> tuple[list[Any], Any, list[str], Any]:
    import equinox
    import paramax

    frozen = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
    arrays, static = equinox.partition(bijection, equinox.is_inexact_array, is_leaf=frozen)
    found, tree = jax.tree_util.tree_flatten_with_path(arrays)
    names = [jax.tree_util.keystr(path).lstrip(".") for path, _ in found]
    return [leaf for _, leaf in found], static, names, tree


def initial_weights(key: Any, *options: Any) -> dict[str, Any]:
    """The weights of a flow that is nearly the identity: those of the last layers, which make the splines, are small."""
    weights, _, names, _ = _taken_apart(_make(key, *options))
    last = max((name.split("layers[")[1].split("]")[0] for name in names), key=int)
    small = f"layers[{last}]"
    return {name: 0.01 * leaf if small in name else leaf for name, leaf in zip(names, weights, strict=True)}
