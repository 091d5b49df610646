"""`joint`: values at several addresses with one density."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.address import nest, parse
from ppl.estimated import Changes, Estimated, EstimatedOperands, Values, bind
from ppl.families.free import Coordinates, Fixed, coordinates_of, refuse_branches
from ppl.families.latents import Latent, latents_of
from ppl.program import Bound, inline, sample
from ppl.site import SAMPLE, Operands, Site, Where, show, user_frame
from ppl.supports import base
from ppl.transforms.stage import Located


def joint(distribution: Any, parts: Mapping[str, Any] | Bound, addresses: Sequence[str] | None = None) -> Any:
    """Draw values at several addresses from one distribution over vectors: a statement, like `ppl.sample`.

    The vector is cut into the parts, in order, and NumPyro's bijections (`biject_to`) take each from the reals to its support.
    The density is that of the values, with the Jacobians. Where the distribution is a known function of Gaussian noise (a
    multivariate normal, a `TransformedDistribution`), that noise is drawn, and nothing has to be inverted to know the density
    of a draw. In a plate or under `vmap`, every lane draws a vector.

    Args:
        distribution: over vectors `[D]`, with batch shape `()`. Integers, where all parts are discrete.
        parts: by address, a NumPyro constraint, or a constraint and the shape of the value: `("simplex", [3])` takes two
            coordinates. Or a bound program, whose latent variables are then the parts: also where supports move with other
            variables, or variables stand in branches of a `cond` (the distribution is then `Normal(...).to_event(1)`).
        addresses: of such a program, the latent variables to draw; all if None.

    Returns:
        The values, a nested dict.

    Raises:
        FamilyError: the distribution and the parts disagree on the number of coordinates; some of the parts are conditioned
            on, masked or intervened on without the others.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def family(scale_tril):
        ...     normal = dist.MultivariateNormal(jnp.zeros(3), scale_tril=scale_tril)
        ...     parts = {"tau": dist.constraints.positive, "theta": (dist.constraints.real, (2,))}
        ...     return ppl.families.joint(normal, parts)
        >>> trace, log_q = family(jnp.eye(3)).simulate(jax.random.key(0))
        >>> print(jax.tree.map(jnp.shape, trace))
        {'tau': (), 'theta': (2,)}
        >>> bool(jnp.isclose(family(jnp.eye(3)).log_density(trace), log_q))
        True
    """
    where = user_frame()
    if not isinstance(distribution, dist.Distribution) or distribution.batch_shape or len(distribution.event_shape) != 1:
        shown = getattr(distribution, "shape", lambda: None)()
        raise errors.FamilyError(
            f"ppl.families.joint takes a distribution with batch shape () over vectors [D], got {type(distribution).__name__}"
            f"{'' if shown is None else f' of shape {list(shown)}'}; .to_event(1) makes a vector of a batch.\n  {where}"
        )
    coordinates: Coordinates
    consts: Any
    if isinstance(parts, Bound):
        latents = latents_of(parts, addresses)
        coordinates, consts = coordinates_of(parts, latents)
    else:
        latents = [_part(name, part, where) for name, part in parts.items()]
        coordinates, consts = Fixed(tuple(latents)), []
    elementwise = isinstance(distribution, dist.Independent) and not distribution.base_dist.event_shape
    if not elementwise:
        refuse_branches(latents, type(distribution).__name__)
    size = sum(latent.size for latent in latents)
    if distribution.event_shape != (size,):
        raise errors.FamilyError(
            f"the distribution has {distribution.event_shape[0]} coordinates and the parts take {size}: "
            + ", ".join(f"{latent.name} {latent.size}" for latent in latents)
            + f".\n  {where}"
        )
    leaves, tree = jax.tree.flatten(distribution)
    located = tuple(_located(latent, type(distribution).__name__, where) for latent in latents)
    hidden = "<joint " + " ".join("_".join(latent.address) for latent in latents) + ">"
    integral = Joint(tree, coordinates, hidden, elementwise, where)
    outs = bind(Estimated(integral, None, located), EstimatedOperands((leaves, consts)))
    return nest({latent.address: value for latent, value in zip(latents, outs, strict=True)})


def _part(name: str, part: Any, where: Where) -> Latent:
    support, shape = part if isinstance(part, tuple) else (part, ())
    if not isinstance(support, dist.constraints.Constraint):
        raise errors.FamilyError(f"the part {name!r} is a constraint, or one and a shape; got {part!r}.\n  {where}")
    support, shape = base(support), tuple(shape)
    free = shape if support.is_discrete else tuple(dist.biject_to(support).inverse_shape(shape))
    dtype = jnp.result_type(int) if support.is_discrete else jnp.result_type(float)
    return Latent(parse(name), shape, free, dtype, support, where)


def _located(latent: Latent, name: str, where: Where) -> Located:
    tree = jax.tree.structure(Operands())
    support = latent.support
    return Located(Site(latent.address, SAMPLE, tree, latent.shape, latent.dtype, support, where, name, len(latent.shape)))


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """How the values of a joint distribution are drawn and scored; see `ppl.estimated.Integral`. Nothing is estimated here."""

    tree: Any
    coordinates: Coordinates
    hidden: str
    elementwise: bool
    where: Where

    def draw(self, consts: Any, changes: Changes) -> Values:
        return self.simulate(consts, changes)[0]

    def simulate(self, consts: Any, changes: Changes) -> tuple[Values, Any]:
        leaves, rest = consts
        self._refuse_parts(changes)
        distribution = jax.tree.unflatten(self.tree, leaves)
        choices = [value for verb, given in changes if verb == "with_estimators" for value in given.values()]
        detached = any(verb == "detach" for verb, _ in changes)
        if self.elementwise:
            z = self._site(distribution, choices, detached)
            return self.coordinates.constrain(rest, z, distribution.base_dist.log_prob(z))
        if choices or detached or not isinstance(distribution, _FROM_NOISE):
            z = self._site(distribution, choices, detached)
            log_q = distribution.log_prob(z)
        else:
            z, log_q = self._from_noise(distribution)
        values, log_jacobian = self.coordinates.constrain(rest, z)
        return values, log_q + log_jacobian

    def score(self, consts: Any, changes: Changes, values: Values) -> Any:
        leaves, rest = consts
        self._refuse_parts([change for change in changes if change[0] == "mask"])
        distribution = jax.tree.unflatten(self.tree, leaves)
        z, log_jacobian = self.coordinates.free(rest, values)
        if self.elementwise:
            return self.coordinates.constrain(rest, z, distribution.base_dist.log_prob(z))[1]
        return distribution.log_prob(z) + log_jacobian

    def _site(self, distribution: Any, choices: Sequence[Any], detached: bool) -> Any:
        one = Bound(lambda: sample(self.hidden, distribution))
        if choices:
            one = one.with_estimators(choices[-1])
        return inline(one.detach() if detached else one, ())

    def _from_noise(self, distribution: Any) -> tuple[Any, Any]:
        """A draw and its log density, by way of the noise that it is made of."""
        if isinstance(distribution, dist.MultivariateNormal):
            zeros = jnp.zeros(distribution.event_shape, jnp.result_type(distribution.loc))
            noise = dist.Normal(zeros, 1.0)
            eps = sample(self.hidden, noise)
            log_scales = jnp.log(jnp.diagonal(distribution.scale_tril))
            return distribution.loc + distribution.scale_tril @ eps, jnp.sum(noise.log_prob(eps)) - jnp.sum(log_scales)
        z = sample(self.hidden, distribution.base_dist)
        log_q = jnp.sum(distribution.base_dist.log_prob(z))
        for transform in distribution.transforms:
            image, intermediates = transform.call_with_intermediates(z)
            log_q = log_q - jnp.sum(transform.log_abs_det_jacobian(z, image, intermediates))
            z = image
        return z, log_q

    def _refuse_parts(self, changes: Changes) -> None:
        for verb, given in changes:
            if verb in ("condition", "intervene", "substitute", "mask"):
                names = ", ".join(show(latent.address) for latent in self.coordinates.latents)
                raise errors.FamilyError(
                    f"{verb} of {', '.join(map(show, given))}, a part of {names}, which have one joint density.\n  {self.where}"
                    f"\nGive all of them, or use a family that factorizes (ppl.families.mean_field, by_address)."
                )


_FROM_NOISE = (dist.MultivariateNormal, dist.TransformedDistribution)

__all__ = ["joint"]
