"""The network of the spike-train benchmark against its definition in NumPy and SciPy."""

import jax
import numpy as np
import scipy.stats

from benchmarks import vis_glm


def test_log_density_of_the_network():
    """The recent counts come from a convolution over the whole train, not from a scan; single precision."""
    theta, _ = vis_glm.simulated(jax.random.key(0), 1)
    trace, log_p = jax.jit(lambda key: vis_glm.network(theta).simulate(key))(jax.random.key(1))
    counts = np.concatenate([trace["visible"], trace["hidden"]], axis=1).astype(float)
    kernel = np.exp(-5.0 * 0.05 * np.arange(1, 6))
    kernel = np.concatenate([[0.0], kernel / (0.05 * kernel.sum())])  # a bin does not see itself
    recent = np.stack([np.convolve(train, kernel)[:100] for train in counts.T], axis=1)
    rate = 1 / (1 + np.exp(-(recent @ np.asarray(theta["weights"]).T + np.asarray(theta["bias"]))))
    by_bin = scipy.stats.poisson.logpmf(counts, rate)
    assert counts.sum() > 50
    np.testing.assert_allclose(log_p, by_bin.sum(), rtol=1e-5)
    np.testing.assert_allclose(vis_glm.network(theta).log_density(trace), by_bin.sum(), rtol=1e-5)
    hidden = jax.tree.map(lambda leaf: leaf[3:], theta)
    family = vis_glm.forward(hidden, trace["visible"])
    np.testing.assert_allclose(family.log_density({"hidden": trace["hidden"]}), by_bin[:, 3:].sum(), rtol=1e-5)
