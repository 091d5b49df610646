"""Pictures in the plane show the functions and points that they are given."""

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from ppl import errors
from ppl.diagnostics.plots import density, field, trajectories


def test_a_field_over_a_density_with_trajectories():
    axes = Figure().subplots()
    low, high = (-2.0, -1.0), (2.0, 1.0)
    density(lambda x: -jnp.sum((x - jnp.array([1.0, 0.0])) ** 2), low, high, points=41, axes=axes)
    field(lambda x: jnp.stack([-x[1], x[0]]), low, high, points=5, axes=axes)
    paths = np.stack([np.linspace([-2.0, -1.0], [1.0, 0.0], 7), np.linspace([-2.0, 1.0], [1.0, 0.0], 7)])
    figure = trajectories(paths, axes=axes)
    contours, arrows, lines, starts, ends = axes.collections
    innermost = np.concatenate([path.vertices for path in contours.get_paths()[-1:]])
    np.testing.assert_allclose(innermost.mean(0), [1.0, 0.0], atol=0.05)  # the mode
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V]), np.stack([-arrows.Y, arrows.X]).reshape(2, -1), atol=1e-6)
    np.testing.assert_allclose(lines.get_segments(), paths)
    np.testing.assert_allclose(starts.get_offsets(), paths[:, 0])
    np.testing.assert_allclose(ends.get_offsets(), paths[:, -1])
    assert axes.get_xlim() == (-2.0, 2.0)
    assert axes.get_ylim() == (-1.0, 1.0)
    assert figure is axes.figure


def test_wrong_shapes_are_refused():
    with pytest.raises(errors.ValueShapeError, match=r"paths, steps, 2\], got \[3, 2\]"):
        trajectories(np.zeros((3, 2)))
    with pytest.raises(errors.ValueShapeError, match=r"shape \[2\], got \[\]"):
        field(jnp.sum, (0.0, 0.0), (1.0, 1.0))
    with pytest.raises(errors.ValueShapeError, match="one number"):
        density(lambda x: -x, (0.0, 0.0), (1.0, 1.0))
