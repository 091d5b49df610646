"""Manifolds on which paths are geodesics: the sphere and the torus (Chen and Lipman 2024)."""

from __future__ import annotations

from typing import Any, Protocol

import jax.numpy as jnp
from numpyro.distributions import constraints

from ppl.transport.paths import Path


class Manifold(Protocol):
    """What a flow and a path need of a manifold whose points are arrays."""

    support: Any

    def project(self, x: Any) -> Any:
        """The nearest point of the manifold."""
        ...

    def tangent(self, x: Any, v: Any) -> Any:
        """The part of a vector that is tangent at a point."""
        ...

    def geodesic(self, t: Any, x0: Any, x1: Any) -> Any:
        """The shortest way from one point to another, at a time between 0 and 1."""
        ...


class Sphere:
    """Unit vectors, the last axis. Densities are with respect to its surface measure.

    Between opposite points there is no shortest way: a measure of zero.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> path = ppl.transport.geodesic(ppl.transport.Sphere())
        >>> x = path.at(0.5, (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
        >>> bool(jnp.allclose(x, jnp.sqrt(0.5)))
        True
    """

    support = constraints.sphere

    def project(self, x: Any) -> Any:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def tangent(self, x: Any, v: Any) -> Any:
        return v - jnp.sum(x * v, axis=-1, keepdims=True) * x

    def geodesic(self, t: Any, x0: Any, x1: Any) -> Any:
        cosine = jnp.sum(x0 * x1, axis=-1, keepdims=True)
        towards = x1 - cosine * x0
        squared = jnp.sum(towards**2, axis=-1, keepdims=True)
        small = squared < 1e-8
        sine = jnp.sqrt(jnp.where(small, 1.0, squared))
        # The angle by arctan2, not arccos, which loses half of the digits where it is small.
        ratio = jnp.where(small, 1.0, jnp.arctan2(sine, cosine) / sine)
        return self.exp(x0, t * ratio * towards)

    def exp(self, x: Any, v: Any) -> Any:
        """Where a geodesic of velocity v is after unit time."""
        squared = jnp.sum(v * v, axis=-1, keepdims=True)
        small = squared < 1e-8
        length = jnp.sqrt(jnp.where(small, 1.0, squared))
        ratio = jnp.where(small, 1.0 - squared / 6.0, jnp.sin(length) / length)
        return self.project(jnp.where(small, 1.0 - 0.5 * squared, jnp.cos(length)) * x + ratio * v)


class Torus:
    """Angles from -pi to pi. Fields on it have to be periodic: give a network their sines and cosines.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> path = ppl.transport.geodesic(ppl.transport.Torus())
        >>> print(f"{path.velocity(0.5, (jnp.array([3.0]), jnp.array([-3.0])))[0]:.4f}")  # across pi
        0.2832
    """

    support = constraints.independent(constraints.circular, 1)

    def project(self, x: Any) -> Any:
        return jnp.mod(x + jnp.pi, 2.0 * jnp.pi) - jnp.pi

    def tangent(self, x: Any, v: Any) -> Any:
        return v

    def geodesic(self, t: Any, x0: Any, x1: Any) -> Any:
        return self.project(x0 + t * self.project(x1 - x0))


def geodesic(manifold: Manifold) -> Path:
    """The path along geodesics, for Riemannian flow matching: its velocity is tangent without further ado."""
    return Path(manifold.geodesic)


__all__ = ["Manifold", "Sphere", "Torus", "geodesic"]
