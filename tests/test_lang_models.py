"""The shipped `.vi` files: log densities and gradients of the programs that are written in Python."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from benchmarks import cone, posteriors, table4

ROOT = pathlib.Path(__file__).parents[1]
MODELS = ROOT / "tutorials" / "models"


def columns(*names):
    return lambda data: {name: data[name] for name in names}


def mesquite(data):
    logs = [np.log(data[name]) for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    return {"log_weight": np.log(data["weight"]), "covariates": np.stack([*logs, data["group"]], axis=1)}


def nes(data):
    ages = [data["age_discrete"] == age for age in (2, 3, 4)]
    rest = [data[name] for name in ("educ1", "gender", "income")]
    return {"partyid7": data["partyid7"], "covariates": np.stack([data["real_ideo"], data["race_adj"], *ages, *rest], axis=1)}


FILES = {
    "arK-arK": ("arK", columns("y")),
    "diamonds-diamonds": ("diamonds", columns("Y", "X")),
    "dogs-dogs": ("dogs", columns("y")),
    "earnings-logearn_height": ("logearn_height", lambda d: {"log_earn": np.log(d["earn"]), "height": d["height"]}),
    "eight_schools-eight_schools_centered": ("eight_schools_centered", columns("y", "sigma")),
    "eight_schools-eight_schools_noncentered": ("eight_schools_noncentered", columns("y", "sigma")),
    "gp_pois_regr-gp_regr": ("gp_regr", columns("x", "y")),
    "hmm_example-hmm_example": ("hmm_example", columns("y")),
    "kidiq-kidscore_interaction": ("kidscore_interaction", columns("kid_score", "mom_hs", "mom_iq")),
    "low_dim_gauss_mix-low_dim_gauss_mix": ("low_dim_gauss_mix", columns("y")),
    "mesquite-logmesquite": ("logmesquite", mesquite),
    "nes2000-nes": ("nes", nes),
    "radon_mn-radon_hierarchical_intercept_noncentered": (
        "radon",
        columns("log_radon", "log_uppm", "floor_measure", "county_idx", "J"),
    ),
    "wells_data-wells_dae_model": (
        "wells",
        lambda d: {"distance": d["dist"], **{name: d[name] for name in ("switched", "arsenic", "educ")}},
    ),
}


@pytest.mark.skipif(not posteriors.folder().is_dir(), reason="the reference posteriors are not here (PPL_POSTERIORDB)")
@pytest.mark.parametrize("name", sorted(FILES))
def test_posteriors(name):
    file, data_of = FILES[name]
    with jax.enable_x64(True):
        posterior = posteriors.load(name)
        module = ppl.lang.load(MODELS / f"{file}.vi", data_of(posterior.data))
        (program,) = module.programs
        means = jnp.asarray([posterior.mean[parameter] for parameter in posterior.names])
        trace = posterior.trace(means)
        theirs, gradient = jax.value_and_grad(posterior.model.log_density)(trace)
        ours, our_gradient = jax.value_and_grad(module.program(program)().log_density)(trace)
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
        for address, value in gradient.items():
            scale = np.max(np.abs(value)) + 1e-6
            np.testing.assert_allclose(our_gradient[address], value, rtol=1e-7, atol=1e-9 * scale, err_msg=address)


def same(ours, our_params, theirs, their_params, pairs):
    """Equal values and equal gradients for the same key; `pairs` are the gradients' leaves in the one and the other."""
    key = jax.random.key(3)
    value, gradient = jax.jit(lambda p: ours.value_and_grad(key, p, samples=3))(our_params)
    their_value, their_gradient = jax.jit(lambda p: theirs.value_and_grad(key, p, samples=3))(their_params)
    np.testing.assert_allclose(value, their_value, rtol=1e-5)
    for one, other in pairs(gradient, their_gradient):
        assert np.any(np.asarray(other) != 0)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def cones():
    module = ppl.lang.load(MODELS / "cone.vi", {"z": cone.Z})
    params = module.init()
    params["mean_field"] = {"m": jnp.array([3.0, 0.2]), "s": jnp.array([0.3, 0.4])}
    return module, params


@pytest.mark.parametrize("name", ["elbo", "iwae"])
def test_cone_mean_field(cones, name):
    module, params = cones
    theirs = {"mu": params["mean_field"]["m"], "log_sigma": params["mean_field"]["s"]}
    same(
        getattr(module, name),
        params,
        getattr(cone, name),
        theirs,
        lambda a, b: [(a["mean_field"]["m"], b["mu"]), (a["mean_field"]["s"], b["log_sigma"])],
    )


@pytest.mark.parametrize("name", ["hvi", "iwhvi", "diwhvi"])
def test_cone_ring(cones, name):
    module, params = cones
    theirs = getattr(table4, name)
    same(getattr(module, name), params, theirs, params["ring"]["sigma"], lambda a, b: [(a["ring"]["sigma"], b)])


def test_cone_learned_reverse_kernel(cones):
    module, params = cones
    start = {"log_sigma": jnp.array(0.0), "radius": jnp.array(2.0), "log_sharpness": jnp.array(0.0)}

    def pairs(a, b):
        names = (("circle", "radius", "radius"), ("circle", "scale", "log_sigma"), ("back", "sharpness", "log_sharpness"))
        return [(a[program][ours], b[theirs]) for program, ours, theirs in names]

    same(module.learned, params, table4.learned, start, pairs)


def test_cone_fits_are_those_of_the_paper(cones):
    module, params = cones
    fit = module.fits[0]
    assert (fit.names, fit.steps, fit.samples, fit.programs) == (("elbo",), 5000, 64, ("cone", "mean_field"))
    result = fit.run(params, jax.random.key(0), steps=20, progress=False)
    assert result.history.shape == (20,)
    assert sorted(ppl.trace_shapes(result.family(result.params))) == ["x", "y"]


def test_schools_are_the_issues_example():
    data = json.loads((ROOT / "tutorials" / "data" / "eight_schools.json").read_text())["data"]
    module = ppl.lang.load(MODELS / "schools.vi", {"y": data["y"], "sigma": data["sigma"]})
    rows = ppl.trace_shapes(module.schools())
    assert {name: (row.shape, row.kind) for name, row in rows.items()} == {
        "mu": ((), "sample"),
        "tau": ((), "sample"),
        "theta": ((8,), "sample"),
        "y": ((8,), "observed"),
    }
    assert rows["theta"].where.endswith('schools.vi", line 9, in schools')
