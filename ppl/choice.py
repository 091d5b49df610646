"""The choice of estimators by users: what may be named, for which sites."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpyro.distributions as dist

from ppl import errors, estimators
from ppl.site import Site, Where


class SiteDescription(NamedTuple):
    """What a function given to `with_estimators` is told of a site.

    Attributes:
        address: `"sub/x"`.
        distribution: the name of its distribution, such as `"Normal"`.
        shape: of the value, with the axes of plates and `vmap` and without those of loops.
        event_dim: how many trailing axes are one draw.
        discrete: whether the values are integers or booleans.
        support: a NumPyro constraint, or None where it depends on traced parameters.
        plates: the names of plates around the site, outermost first; `""` for a plain `vmap`.
    """

    address: str
    distribution: str
    shape: tuple[int, ...]
    event_dim: int
    discrete: bool
    support: Any
    plates: tuple[str, ...]


def describe(site: Site) -> SiteDescription:
    """What users see of a site."""
    plates = tuple("" if plate.axis is None else plate.axis.name for plate in reversed(site.plates))
    discrete = not np.issubdtype(site.dtype, np.inexact)
    return SiteDescription(site.name, site.distribution_name, site.full_shape, site.event_dim, discrete, site.support, plates)


def chosen_for(site: Site, choice: Any) -> Any:
    """The estimator that a choice, an estimator or a function of the site's description, gives for one site; or None."""
    if _is_estimator(choice) or choice is None:
        return choice
    if isinstance(choice, type | dist.Distribution) or not callable(choice):
        raise not_an_estimator(choice, f"for {site.name!r}", site.where)
    found = choice(describe(site))
    if found is not None and not _is_estimator(found):
        name = getattr(choice, "__name__", repr(choice))
        raise not_an_estimator(found, f"from {name}() for {site.name!r}", site.where)
    return found


def require_estimator(value: Any, address: str, where: Where) -> None:
    """Refuse what is no estimator, at a site."""
    if value is not None and not _is_estimator(value):
        raise not_an_estimator(value, f"at {address!r}", where)


_MEMBERS = ("unbiased", "coupling", "axis", "refuses", "branches", "particle")


def _is_estimator(value: Any) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in _MEMBERS)


def available() -> list[str]:
    """The names of the estimators there are."""
    found = [name for name in estimators.__all__ if name != "Estimator" and hasattr(getattr(estimators, name), "particle")]
    return sorted(found)


def not_an_estimator(value: Any, what: str, where: Where) -> errors.EstimatorError:
    """The error that says so."""
    lacks = [name for name in _MEMBERS if not hasattr(value, name)]
    if isinstance(value, type) and not set(_MEMBERS[3:]) & set(lacks):
        hint = f"Make one of it: {value.__name__}(...)."
    elif set(lacks) == set(_MEMBERS):
        hint = "It has none of the members of ppl.estimators.Estimator."
    else:
        hint = f"It lacks {', '.join(lacks)} of ppl.estimators.Estimator."
    return errors.EstimatorError(
        f"{value!r}, given {what}, is no estimator.\n  {where}\n{hint} There are: {', '.join(available())}. "
        "Or leave it to the library with None."
    )
