"""A Gaussian family that follows the model's dependence graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ppl import errors
from ppl.families.family import Family, shapes
from ppl.families.free import needs_run
from ppl.families.gaussian import LOG_SCALE, _zeros
from ppl.families.latents import Latent, latents_of
from ppl.families.start import Centre
from ppl.families.text import free_text, quoted, site_distribution, word
from ppl.program import Bound
from ppl.site import DETERMINISTIC, Address
from ppl.transforms.dependence import DependenceGraph, dependence


def structured(model: Bound, addresses: Sequence[str] | None = None) -> Family:
    """Gaussians without constraints whose means are linear in the values of others, after the model's dependence graph.

    Variables are drawn in program order. Each one's mean is linear in the unconstrained values of those before it that are its
    parents in the model, or that it meets in a distribution, an observation or a factor (these depend on one another given the
    data). Variables that share plates or loops are linked element by element, and a loop is drawn as a loop, each step given
    the step before (after, where it runs backwards): parameters grow linearly with the data. Elements of one variable are
    independent given the others, but for those of one draw (the event dimensions), which have any covariance.

    This holds the posterior of a linear Gaussian model whose latent variables form a chain or a tree; of others, whatever
    links the order leaves in.

    Parameters: by address, `{"loc", "log_scale", "on": {other: weights}}`, and `"lower"` for draws that are vectors; `on` has
    `"x before"` for the x of another step. Weights are `[shared axes, this one's other axes, the other's other axes]`.

    Raises:
        FamilyError: as for `ppl.families.mean_field`; or a support moves with other variables, or a variable stands in a
            branch of a `cond`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        ...     ppl.sample("theta", dist.Normal(mu, 1.0).expand([3]))
        >>> family = ppl.families.structured(model())
        >>> jax.tree.map(jax.numpy.shape, family.init(jax.random.key(0))["theta"])
        {'loc': (3,), 'log_scale': (3,), 'on': {'mu': (3,)}}
    """
    latents = latents_of(model, addresses)
    for latent in needs_run(latents):
        what = "stands in a branch of a cond" if latent.branch else "has a support that moves with other variables"
        raise errors.FamilyError(
            f"{latent.name!r} {what}, which structured does not follow.\n  {latent.where}\nUse mean_field or full_rank."
        )
    graph = dependence(model)
    links = _links(graph, latents)
    backwards = {edge.child for edge in graph.edges if edge.recurrent and edge.later}
    statements: list[str] = []
    weights: dict[tuple[Address, str], tuple[int, ...]] = {}
    for chain, group in itertools.groupby(latents, _loop):
        members = list(group)
        if chain is None:
            for latent in members:
                statements += _draw(latent, links[latent.address], "params", 0, set(), weights)
        else:
            statements += _draw_loop(members, links, chain, bool(backwards & {x.address for x in members}), weights)

    def start(key: Any, centre: Centre) -> Any:
        params: dict[str, Any] = {}
        for latent in latents:
            u = centre.values[latent.name]
            own: dict[str, Any] = {"loc": u, "log_scale": jnp.full_like(u, LOG_SCALE)}
            if _is_vector(latent):
                size = latent.free[-1]
                own["lower"] = jnp.zeros((*latent.free[:-1], size * (size - 1) // 2), u.dtype)
            on = {label: jnp.zeros(shape, u.dtype) for (address, label), shape in weights.items() if address == latent.address}
            params[latent.name] = {**own, "on": on} if on else own
        return params

    return Family(model, latents, statements, {}, start, "structured", shapes(start(None, _zeros(latents))))


def linear(weights: Any, values: Any, aligned: int) -> Any:
    """Values times weights, summed over the axes of the values but for the first `aligned`, which both have.

    Args:
        weights: `[shared axes, other axes, other axes of values]`.
        values: `[shared axes, other axes of values]`.
        aligned: the number of shared axes.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> ppl.families.linear(jnp.ones((3, 2, 5)), jnp.ones((3, 5)), 1).shape
        (3, 2)
    """
    own = jnp.ndim(values) - aligned
    shape = jnp.shape(weights)[: jnp.ndim(weights) - own]
    lead, last = jnp.shape(values)[:aligned], math.prod(jnp.shape(values)[aligned:])
    middle = math.prod(shape[aligned:])
    if last == 1:
        flat = jnp.reshape(weights, (*lead, middle)) * jnp.reshape(values, (*lead, 1))
    else:
        flat = jnp.einsum("...ij,...j->...i", jnp.reshape(weights, (*lead, middle, last)), jnp.reshape(values, (*lead, last)))
    return jnp.reshape(flat, shape)


class _Link(NamedTuple):
    """A variable that another's mean is linear in; `before`, if at the other step of their loop."""

    other: Latent
    before: bool

    @property
    def label(self) -> str:
        return self.other.name + (" before" if self.before else "")


def _links(graph: DependenceGraph, latents: Sequence[Latent]) -> dict[Address, list[_Link]]:
    """What each variable is linear in: every two that meet, the later in the earlier one."""
    place = {latent.address: i for i, latent in enumerate(latents)}
    links: dict[Address, dict[_Link, None]] = {latent.address: {} for latent in latents}
    for node in graph.nodes:
        into_factor, address = node.site.kind == "factor", node.site.address
        members = set(_parents(graph, address, into_factor, place))
        if address in place and not into_factor:
            members.add((address, False))
        for (a, a_before), (b, b_before) in itertools.permutations(sorted(members), 2):
            same_loop = _loop(latents[place[a]]) is not None and _loop(latents[place[a]]) == _loop(latents[place[b]])
            lagging = same_loop and a_before and not b_before
            leading = same_loop and b_before and not a_before
            if lagging or (not leading and place[a] < place[b]):
                links[b].setdefault(_Link(latents[place[a]], lagging))
    return {
        address: sorted(found, key=lambda link: (link.before, place[link.other.address])) for address, found in links.items()
    }


def _parents(
    graph: DependenceGraph,
    child: Address,
    into_factor: bool,
    latent: Mapping[Address, int],
    seen: frozenset[Address] = frozenset(),
) -> Iterator[tuple[Address, bool]]:
    """The latent variables that reach a site, through deterministic sites too, and whether from another step of a loop."""
    kinds = {node.site.address: node.site.kind for node in graph.nodes if node.site.kind != "factor"}
    for edge in graph.edges:
        if edge.child != child or edge.into_factor != into_factor:
            continue
        if edge.parent in latent:
            yield edge.parent, edge.recurrent
        elif kinds.get(edge.parent) == DETERMINISTIC and edge.parent not in seen:
            for address, before in _parents(graph, edge.parent, False, latent, seen | {edge.parent}):
                yield address, before or edge.recurrent


def _loop(latent: Latent) -> tuple[tuple[str, int], ...] | None:
    """The axes up to the first loop around a variable."""
    names = [name for name, _ in latent.axes]
    return latent.axes[: names.index("scan") + 1] if "scan" in names else None


def _shared(one: Latent, other: Latent) -> int:
    """How many leading axes two variables share."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one.axes, other.axes, strict=False)))


def _is_vector(latent: Latent) -> bool:
    return latent.event_dim == 1 and latent.free[-1] > 1


def _draw(latent: Latent, links: Sequence[_Link], params: str, inside: int, loop: set[Address], weights: Any) -> list[str]:
    """Statements that draw a variable and name its unconstrained value; `inside` axes of it are those of loops around."""
    name = word(latent.name)
    lines = [f"p = {params}[{quoted(latent.name)}]"]
    terms = ['p["loc"]']
    for link in links:
        shared = _shared(latent, link.other)
        sliced = inside if link.other.address in loop or shared >= inside else shared
        aligned = max(shared - inside, 0) if sliced == inside else 0
        own = latent.free[inside + aligned :]
        rest = link.other.free[sliced + aligned :]
        weights[latent.address, link.label] = (*latent.free[:inside], *latent.free[inside : inside + aligned], *own, *rest)
        variable = f"{'before_' if link.before else 'free_'}{word(link.other.name)}"
        terms.append(f'ppl.families.linear(p["on"][{quoted(link.label)}], {variable}, {aligned})')
    if len(terms) == 1:
        lines.append(f"mean = {terms[0]}")
    else:
        lines += ["mean = (", *[f"    {'+ ' if i else ''}{term}" for i, term in enumerate(terms)], ")"]
    normal = 'dist.Normal(mean, jnp.exp(p["log_scale"]))'
    if _is_vector(latent):
        normal = 'dist.MultivariateNormal(mean, scale_tril=ppl.families.scale_tril(p["log_scale"], p["lower"]))'
    lines.append(f"{name} = ppl.sample({quoted(latent.name)}, {site_distribution(latent, normal)})")
    lines.append(f"free_{name} = {free_text(latent, name)}")
    return lines


def _draw_loop(members: Sequence[Latent], links: Any, chain: Any, reverse: bool, weights: Any) -> list[str]:
    """Statements that draw the variables of a loop, in a loop, mapped over the axes around it."""
    depth = len(chain)
    inner = {latent.address for latent in members}
    outer = {link.other.address: link.other for x in members for link in links[x.address] if link.other.address not in inner}
    lagged = [x for x in members if any(link.before and link.other is x for y in members for link in links[y.address])]
    along = [x for x in outer.values() if _shared(members[0], x) >= depth]  # these run along the loop too
    body: list[str] = []
    for latent in members:
        body += _draw(latent, links[latent.address], "params", depth, inner, weights)
    frees = ", ".join(f"free_{word(x.name)}" for x in members)
    now = ", ".join(["params", *(f"free_{word(x.name)}" for x in along)])
    arguments = ", ".join(["params", *(f"free_{word(x.name)}" for x in outer.values())])
    before = "".join(f"before_{word(x.name)}, " for x in lagged)
    after = "".join(f"free_{word(x.name)}, " for x in lagged)
    zeros = "".join(f"jnp.zeros({x.free[depth:]!r}), " for x in lagged)
    own = "{" + ", ".join(f"{quoted(x.name)}: params[{quoted(x.name)}]" for x in members) + "}"
    lines = [
        f"def chain({arguments}):",
        "    def step(before, now):",
        *([f"        {before.strip()} = before"] if lagged else []),
        f"        ({now},) = now",
        *("        " + line for line in body),
        f"        return ({after.strip()}), ({frees},)",
        "",
        f"    return jax.lax.scan(step, ({zeros.strip()}), ({now},), reverse={reverse})[1]",
        "",
    ]
    for axis in reversed(range(depth - 1)):
        flags = ["0", *("0" if _shared(members[0], x) > axis else "None" for x in outer.values())]
        lines.append(f"chain = jax.vmap(chain, in_axes=({', '.join(flags)},))")
    passed = ", ".join([own, *(f"free_{word(x.name)}" for x in outer.values())])
    lines.append(f"({frees},) = chain({passed})")
    return lines
