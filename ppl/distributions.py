"""NumPyro's distributions, under one name with the project's own."""

from numpyro.distributions import *  # noqa: F403
from numpyro.distributions import constraints, transforms

__all__ = [name for name in dir() if not name.startswith("_")] + ["constraints", "transforms"]
