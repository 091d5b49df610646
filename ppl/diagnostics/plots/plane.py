"""Densities, vector fields and trajectories in the plane: what flows and samplers do to points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.diagnostics.plots.canvas import FIT, canvas

Corner = tuple[float, float]


def density(
    log_density: Callable[[Any], Any], low: Corner, high: Corner, *, points: int = 150, figure: Any = None, axes: Any = None
) -> Any:
    """Filled contours of a density in a rectangle.

    Args:
        log_density: of a point `[2]`, in nats, up to a constant.
        low, high: opposite corners.
        points: along each side.
        figure, axes: matplotlib's, to draw on.

    Returns:
        The figure.

    Example:
        >>> import jax.numpy as jnp
        >>> from ppl.diagnostics.plots import density, field
        >>> figure = density(lambda x: -0.5 * jnp.sum(x**2), (-3.0, -3.0), (3.0, 3.0))
        >>> figure = field(lambda x: -x, (-3.0, -3.0), (3.0, 3.0), axes=figure.axes[0])
        >>> figure.axes[0].get_xlim() == (-3.0, 3.0)
        True
    """
    x, y, grid = _grid(low, high, points)
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(log_density)))(grid))
    if values.shape != (points, points) or not np.isfinite(values.max()):
        raise errors.ValueShapeError(
            f"a log density gives one number for a point of shape [2], finite somewhere between {low} and {high}; "
            f"got the shape {list(values.shape[2:])} and a largest value of {values.max()}"
        )
    axes = _axes(figure, axes, low, high)
    axes.contourf(x, y, np.exp(values - values.max()), levels=np.linspace(0.02, 1.0, 13), cmap="Greys", alpha=0.8)
    return axes.figure


def field(
    velocity: Callable[[Any], Any], low: Corner, high: Corner, *, points: int = 17, figure: Any = None, axes: Any = None
) -> Any:
    """Arrows of a vector field: `velocity` takes a point `[2]` and gives one. The rest is as in `density`."""
    x, y, grid = _grid(low, high, points)
    arrows = np.asarray(jax.jit(jax.vmap(jax.vmap(velocity)))(grid))
    if arrows.shape != (points, points, 2):
        raise errors.ValueShapeError(f"a velocity at a point of shape [2] has shape [2], got {list(arrows.shape[2:])}")
    axes = _axes(figure, axes, low, high)
    axes.quiver(x, y, arrows[..., 0], arrows[..., 1], color=FIT, alpha=0.8, angles="xy", pivot="mid", width=0.004)
    return axes.figure


def trajectories(paths: Any, *, figure: Any = None, axes: Any = None) -> Any:
    """Paths of points, from open to filled circles.

    Args:
        paths: `[paths, steps, 2]`.
        figure, axes: matplotlib's, to draw on.

    Returns:
        The figure.

    Example:
        >>> import jax.numpy as jnp
        >>> from ppl.diagnostics.plots import trajectories
        >>> len(trajectories(jnp.zeros((5, 10, 2))).axes[0].collections[0].get_segments())
        5
    """
    paths = np.asarray(paths)
    if paths.ndim != 3 or paths.shape[-1] != 2:
        raise errors.ValueShapeError(f"trajectories have shape [paths, steps, 2], got {list(paths.shape)}")
    figure = canvas(5.0, 5.0, figure, axes)
    axes = figure.subplots() if axes is None else axes
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    colours = colormaps["viridis"](np.linspace(0.0, 0.9, len(paths)))
    axes.add_collection(LineCollection(list(paths), colors=colours, linewidths=1.0))
    axes.scatter(*paths[:, 0].T, s=22, facecolors="white", edgecolors=colours, zorder=3)
    axes.scatter(*paths[:, -1].T, s=22, color=colours, zorder=3)
    axes.autoscale_view()
    axes.set_aspect("equal")
    return figure


def _grid(low: Corner, high: Corner, points: int) -> tuple[np.ndarray, np.ndarray, Any]:
    x, y = (np.linspace(a, b, points) for a, b in zip(low, high, strict=True))
    return x, y, jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(y)), -1)


def _axes(figure: Any, axes: Any, low: Corner, high: Corner) -> Any:
    figure = canvas(5.0, 5.0, figure, axes)
    axes = figure.subplots() if axes is None else axes
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    return axes


__all__ = ["density", "field", "trajectories"]
