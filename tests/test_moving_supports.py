"""Supports that move with parameters of a transform: scores and weights miss their boundary, paths do not."""

import jax
import jax.numpy as jnp
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import ImportanceSampling, Reparameterize, Samples, ScoreFunction

AFFINE, EXP = dist.transforms.AffineTransform, dist.transforms.ExpTransform
KEY = jax.random.key(4)


def transformed(base, *transforms):
    return dist.TransformedDistribution(base, list(transforms))


MOVING = {
    "a shifted exponential": lambda p: transformed(dist.Exponential(1.0), AFFINE(p, 1.0)),
    "a shifted interval": lambda p: transformed(dist.Uniform(0.0, 1.0), AFFINE(p, 1.0)),
    "a scaled interval": lambda p: transformed(dist.Uniform(0.0, 1.0), AFFINE(0.0, p)),
    "the exponential of one": lambda p: transformed(dist.Uniform(0.0, 1.0), AFFINE(p, 1.0), EXP()),
    "a shift after a transform": lambda p: transformed(dist.Normal(0.0, 1.0), EXP(), AFFINE(p, 1.0)),
    "several": lambda p: transformed(dist.Uniform(0.0, 1.0), AFFINE(p, 1.0)).expand([3]).to_event(1),
}
FIXED = {
    "a shifted normal": lambda p: transformed(dist.Normal(0.0, 1.0), AFFINE(p, 0.5)),
    "its exponential": lambda p: transformed(dist.Normal(0.0, 0.5), AFFINE(p, 0.5), EXP()),
    "a scaled gamma": lambda p: transformed(dist.Gamma(3.0, 1.0), AFFINE(0.0, p)),
    "a constant shift": lambda p: transformed(dist.Gamma(1.0, p), AFFINE(1.0, 2.0)),
}


def second_moment(make, estimator):
    return ppl.expectation(lambda p: jnp.sum(ppl.sample("x", make(p), estimator=estimator) ** 2))


@pytest.mark.parametrize("name", MOVING)
def test_scores_and_weights_are_refused_where_a_transform_moves_the_support(name):
    make = MOVING[name]
    for estimator in (ScoreFunction(), Samples(2), ImportanceSampling(make(0.5))):
        with pytest.raises(errors.EstimatorError, match=r"(?s)'x'.*support moves with its parameters"):
            second_moment(make, estimator).grad(KEY, 0.5)


def test_paths_serve_a_support_that_a_transform_moves():
    path = second_moment(MOVING["a shifted interval"], Reparameterize())
    ppl.testing.assert_unbiased(path, 0.5, exact=lambda p: p**2 + p + 1 / 3, draws=5000)


@pytest.mark.parametrize("name", FIXED)
def test_scores_serve_transforms_that_leave_the_support_where_it_is(name):
    exact = {
        "a shifted normal": lambda p: p**2 + 0.25,
        "its exponential": lambda p: jnp.exp(2 * p + 0.125),
        "a scaled gamma": lambda p: 12 * p**2,
        "a constant shift": lambda p: 1 + 4 / p + 8 / p**2,
    }[name]
    ppl.testing.assert_unbiased(second_moment(FIXED[name], ScoreFunction()), 0.8, exact=exact, draws=20_000)
