"""Edges of dependency graphs: exact for many programs, and against the curvature of the log density.

The second derivatives of a log density say, without any graph, which sites interact: a site and its parents, and the
parents of one site among themselves. `test_hessian_is_the_moral_graph` holds the graph against that.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.transforms.dependence import Edge, dependence


def normal(name, *parents, obs=None):
    """A normal whose mean depends on `parents` nonlinearly."""
    mean = sum((jnp.sum(jnp.asarray(p, float)) for p in parents), start=0.3)
    return ppl.sample(name, dist.Normal(jnp.sin(mean) + mean**2, 1.0), obs=obs)


def edges(program, *args, **kwargs):
    bound = program if isinstance(program, ppl.Bound) else ppl.program(program)(*args, **kwargs)
    return str(dependence(bound)).splitlines()


def test_chain_and_fork_and_collider():
    def model():
        a = normal("a")
        b = normal("b", jnp.tanh(a))
        c = normal("c")
        normal("d", b, c)
        normal("e", b)

    assert edges(model) == ["a -> b", "b -> d", "c -> d", "b -> e"]


def test_a_path_through_a_site_is_no_edge_and_a_direct_one_beside_it_is():
    def model(direct):
        a = normal("a")
        b = normal("b", a)
        normal("c", *(a, b) if direct else (b,))

    assert edges(model, False) == ["a -> b", "b -> c"]
    assert edges(model, True) == ["a -> b", "a -> c", "b -> c"]


def test_independent_sites_and_no_sites():
    assert edges(lambda: (normal("a"), normal("b"))) == []
    graph = dependence(ppl.program(lambda: 1.0)())
    assert (graph.nodes, graph.edges) == ((), ())


def test_nodes_are_in_program_order_and_edges_are_triples():
    def model():
        ppl.factor("w", normal("z") + normal("a"))

    graph = dependence(ppl.program(model)())
    assert [located.site.name for located in graph.nodes] == ["z", "a", "w"]
    assert graph.edges == (Edge(("z",), ("w",), into_factor=True), Edge(("a",), ("w",), into_factor=True))


def test_every_parameter_of_a_distribution_counts():
    def model():
        mu, tau = normal("mu"), ppl.sample("tau", dist.HalfNormal(1.0))
        ppl.sample("x", dist.Normal(mu, tau))
        ppl.sample("y", dist.Normal(mu * jnp.ones(3), jnp.array([1.0, 2.0, 3.0])).to_event(1))

    assert edges(model) == ["mu -> x", "tau -> x", "mu -> y"]


def test_vectors():
    def model():
        x = ppl.sample("x", dist.Normal(jnp.zeros(3), 1.0))
        y = ppl.sample("y", dist.MultivariateNormal(x, jnp.eye(3)))
        ppl.sample("k", dist.Categorical(logits=jnp.concatenate([y, jnp.zeros(1)])))

    assert edges(model) == ["x -> y", "y -> k"]


def test_what_is_computed_and_not_used_draws_no_edge():
    def model():
        a = normal("a")
        _ = jnp.sin(a)
        pair = {"used": normal("b"), "unused": a}
        normal("c", pair["used"])

    assert edges(model) == ["b -> c"]


# Calls.


@jax.custom_jvp
def swap(x, y):
    return y + 0.0, x + 0.0


swap.defjvp(lambda primals, tangents: (swap(*primals), swap(*tangents)))


@jax.custom_vjp
def swap_back(x, y):
    return y + 0.0, x + 0.0


swap_back.defvjp(lambda x, y: (swap_back(x, y), None), lambda _, g: (g[1], g[0]))


@pytest.mark.parametrize(
    "function",
    [
        swap,
        swap_back,
        jax.jit(swap),
        jax.jit(lambda x, y: jax.jit(swap)(x, y)),
        jax.checkpoint(lambda x, y: (y * 2, jnp.sin(x))),
        jax.vmap(lambda x, y: (y, x)),
        jax.jit(jax.vmap(swap)),
    ],
)
def test_calls_keep_their_results_apart(function):
    def model():
        a, b = (ppl.sample(name, dist.Normal(jnp.zeros(2), 1.0)) for name in "ab")
        c, d = function(a, b)
        normal("from_b", c)
        normal("from_a", d)

    assert edges(model) == ["b -> from_b", "a -> from_a"]


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))])
def test_sites_in_calls(transform):
    def model():
        a, b = normal("a"), normal("b")

        @transform
        def inner(p, q):
            x = normal("x", p)
            return normal("y", x), q

        y, q = inner(a, b)
        normal("z", y)
        normal("w", q)

    assert edges(model) == ["a -> x", "x -> y", "y -> z", "b -> w"]


def test_gradients_in_programs():
    def model():
        a, b = normal("a"), normal("b")
        normal("c", jax.grad(lambda a, b: jnp.sin(a) * b)(a, b))

    assert edges(model) == ["a -> c", "b -> c"]


# Loops.


def test_hidden_markov_model():
    def model(ys):
        def step(z, y):
            z = normal("z", z)
            normal("x", z, obs=y)
            return z, z

        last, zs = jax.lax.scan(step, normal("start"), ys)
        normal("after", last)
        normal("summary", zs)

    assert edges(model, jnp.zeros(4)) == [
        "start -> z",
        "z -> z (t-1)",
        "z -> x",
        "z -> after",
        "z -> summary",
    ]


def test_observed_markov_chain():
    def model(ys):
        jax.lax.scan(lambda y, obs: (normal("y", y, obs=obs), None), 0.0, ys)

    assert edges(model, jnp.zeros(4)) == ["y -> y (t-1)"]


def test_independent_draws_in_a_scan():
    def model():
        m = normal("m")
        jax.lax.scan(lambda c, _: (c + 1.0, normal("x", m, c)), 0.0, None, 4)

    assert edges(model) == ["m -> x"]


def test_two_sites_coupled_through_the_carry():
    def model():
        def step(carry, _):
            x, y = carry
            return (normal("x", y), normal("y", x)), None

        jax.lax.scan(step, (0.0, 0.0), None, 5)

    assert edges(model) == ["y -> x (t-1)", "x -> y (t-1)"]


def test_same_and_previous_step_are_two_edges():
    def model():
        def step(x, _):
            new = normal("x", x)
            normal("y", x, new)
            return new, None

        jax.lax.scan(step, 0.0, None, 5)

    assert edges(model) == ["x -> x (t-1)", "x -> y", "x -> y (t-1)"]


def test_a_long_delay_line():
    """The carry needs as many passes as the line is long."""

    def model():
        def step(line, _):
            new = normal("x", line[-1])
            return (new, *line[:-1]), line[2]

        line, delayed = jax.lax.scan(step, (0.0,) * 6, None, 10)
        normal("y", line[3])
        normal("z", delayed)

    assert edges(model) == ["x -> x (t-1)", "x -> y", "x -> z"]


def test_running_sum_depends_on_all_earlier_steps():
    def model():
        jax.lax.scan(lambda s, _: (s + normal("x", s), None), normal("s0"), None, 3)

    assert edges(model) == ["s0 -> x", "x -> x (t-1)"]


def test_reverse_scan():
    def model(ys):
        jax.lax.scan(lambda z, y: (normal("z", z, y), None), 0.0, ys, reverse=True)

    assert edges(model, jnp.zeros(4)) == ["z -> z (t+1)"]
    (edge,) = dependence(ppl.program(model)(jnp.zeros(4))).edges
    assert (edge.recurrent, edge.later) == (True, True)


@pytest.mark.parametrize(("length", "expected"), [(0, ["a -> x", "a -> y"]), (1, ["a -> x", "x -> y"]), (2, None)])
def test_short_scans(length, expected):
    def model():
        x, _ = jax.lax.scan(lambda x, _: (normal("x", x), None), normal("a"), None, length)
        normal("y", x)

    assert edges(model) == (expected or ["a -> x", "x -> x (t-1)", "x -> y"])


def test_nested_scans():
    def model():
        def row(above, _):
            def cell(left, above):
                new = normal("x", left, above)
                return new, new

            _, xs = jax.lax.scan(cell, 0.0, above)
            normal("end", xs)
            return xs, None

        jax.lax.scan(row, jnp.zeros(3), None, 3)

    assert edges(model) == ["x -> x (t-1)", "x -> end"]


def test_the_outer_recurrence_survives_the_inner_loop():
    """`y` reads this row's last `x` and the previous row's, which the inner loop hands through."""

    def model():
        def row(previous, _):
            def cell(carry, _):
                x, handed = carry
                return (normal("x", x), handed), None

            (x, handed), _ = jax.lax.scan(cell, (0.0, previous), None, 3)
            normal("y", x, handed)
            normal("only_before", handed)
            normal("only_now", x)
            return x, None

        jax.lax.scan(row, 0.0, None, 3)

    assert edges(model) == [
        "x -> x (t-1)",
        "x -> y",
        "x -> y (t-1)",
        "x -> only_before (t-1)",
        "x -> only_now",
    ]


def test_scan_over_the_results_of_a_scan():
    def model():
        _, zs = jax.lax.scan(lambda z, _: (normal("z", z), normal("u", z)), 0.0, None, 4)
        jax.lax.scan(lambda c, z: (normal("x", c, z), None), 0.0, zs)

    assert edges(model) == ["z -> z (t-1)", "z -> u (t-1)", "u -> x", "x -> x (t-1)"]


def test_a_scan_without_sites_keeps_its_results_apart():
    def model():
        a, b = normal("a"), normal("b")
        (p, q), _ = jax.lax.scan(lambda c, _: ((c[0] * 2, c[1] + c[0] * 0 + 1), None), (a, b), None, 3)
        normal("p", p)
        normal("q", q)

    assert edges(model) == ["a -> p", "a -> q", "b -> q"]


def test_fori_loop():
    def model():
        m = normal("m")
        x = jax.lax.fori_loop(0, 4, lambda _, x: normal("x", x, m), normal("start"))
        normal("y", x)

    assert edges(model) == ["m -> x", "start -> x", "x -> x (t-1)", "x -> y"]


def test_while_loop():
    """How often the body runs depends on the draws themselves and on `limit`, so these are parents too."""

    def model():
        limit, m = normal("limit"), normal("m")
        count, x = jax.lax.while_loop(
            lambda state: state[1] < limit, lambda state: (state[0] + 1, normal("x", m)), (0, normal("start"))
        )
        normal("from_x", x)
        normal("from_count", count)

    assert edges(model) == [
        "limit -> x",
        "m -> x",
        "start -> x",
        "x -> x (t-1)",
        *(f"{parent} -> from_x" for parent in ("limit", "start", "x")),
        *(f"{parent} -> from_count" for parent in ("limit", "start", "x")),
    ]


def test_fori_loop_with_a_random_number_of_steps():
    def model():
        n = ppl.sample("n", dist.Poisson(3.0))
        normal("y", jax.lax.fori_loop(0, n, lambda *_: normal("x"), 0.0))

    assert edges(model) == ["n -> x", "n -> y", "x -> y"]


# Branches.


def test_cond():
    def model():
        p = ppl.sample("p", dist.Bernoulli(0.5))
        a, b = normal("a"), normal("b")
        y = jax.lax.cond(p == 1, lambda a, _: normal("left", a), lambda _, b: normal("right", b), a, b)
        normal("y", y)

    assert edges(model) == [
        "p -> right",
        "b -> right",
        "p -> left",
        "a -> left",
        "p -> y",
        "right -> y",
        "left -> y",
    ]  # in the jaxpr the false branch comes first


def test_cond_without_sites():
    def model():
        p, a, b = normal("p"), normal("a"), normal("b")
        u, v = jax.lax.cond(p > 0, lambda: (a, 1.0), lambda: (a * 2, b))
        normal("u", u)
        normal("v", v)

    assert edges(model) == ["p -> u", "a -> u", "p -> v", "b -> v"]


def test_switch_whose_branches_share_an_address():
    def model():
        k = ppl.sample("k", dist.Categorical(jnp.ones(3) / 3))
        a, b = normal("a"), normal("b")
        branches = [lambda: normal("x", a), lambda: normal("x", b), lambda: normal("other")]
        normal("y", jax.lax.switch(k, branches))

    assert edges(model) == ["k -> x", "a -> x", "b -> x", "k -> other", "k -> y", "x -> y", "other -> y"]
    names = [located.site.name for located in dependence(ppl.program(model)()).nodes]
    assert names == ["k", "a", "b", "x", "other", "y"]


def test_nested_cond_in_a_scan():
    def model():
        def step(x, _):
            p, q = normal("p"), normal("q")

            def inner():
                return jax.lax.cond(q > 0, lambda: normal("x", x), lambda: x)

            return jax.lax.cond(p > 0, inner, lambda: 0.0), None

        jax.lax.scan(step, 0.0, None, 5)

    assert edges(model) == ["p -> x", "p -> x (t-1)", "q -> x", "q -> x (t-1)", "x -> x (t-1)"]


def test_factor_and_deterministic_in_a_branch_depend_on_the_predicate():
    def model():
        p, a = normal("p"), normal("a")

        def taken():
            ppl.factor("w", a)
            return ppl.deterministic("d", 1.0)

        jax.lax.cond(p > 0, taken, lambda: 0.0)

    assert edges(model) == ["p -> w", "a -> w", "p -> d"]


# Plates.


@pytest.mark.parametrize("mapped", [jax.vmap, lambda f: ppl.plate("data", f), lambda f: ppl.plate("data", f, size=99)])
def test_vmap_and_plate(mapped):
    def model(y):
        mu = normal("mu")

        def datum(y):
            theta = normal("theta", mu)
            normal("y", theta, obs=y)
            return theta

        normal("mean", mapped(datum)(y))

    assert edges(model, jnp.zeros(3)) == ["mu -> theta", "theta -> y", "theta -> mean"]


def test_vmap_of_cond_with_a_batched_predicate():
    def model():
        ps = jax.vmap(lambda _: normal("p"))(jnp.arange(3))
        a = normal("a")
        ys = jax.vmap(lambda p: jax.lax.cond(p > 0, lambda: normal("l", a), lambda: normal("r")))(ps)
        normal("y", ys)

    assert edges(model) == ["p -> r", "p -> l", "a -> l", "p -> y", "r -> y", "l -> y"]


def test_vmap_of_scan_and_scan_of_vmap():
    def inside():
        jax.vmap(lambda x0: jax.lax.scan(lambda x, _: (normal("x", x), None), x0, None, 4))(
            jax.vmap(lambda _: normal("x0"))(jnp.arange(2))
        )

    def outside():
        def step(xs, _):
            return jax.vmap(lambda x: normal("x", x))(xs), None

        jax.lax.scan(step, jax.vmap(lambda _: normal("x0"))(jnp.arange(2)), None, 4)

    assert edges(inside) == edges(outside) == ["x0 -> x", "x -> x (t-1)"]


def test_subsample():
    def model(data):
        rows = ppl.subsample("rows", 10, 3)

        def datum(y):
            normal("y", normal("z"), obs=y)

        ppl.plate("data", datum, size=10)(data[rows])

    assert edges(model, jnp.zeros(10)) == ["rows -> y", "z -> y"]


# Programs in programs, and modifications.


@ppl.program
def link(x):
    y = normal("y", x)
    return normal("z", y)


def test_nested_programs():
    def model():
        a = normal("a")
        b = ppl.sample("first", link(a))
        ppl.sample("second/deep", link(b))

    assert edges(model) == [
        "a -> first/y",
        "first/y -> first/z",
        "first/z -> second/deep/y",
        "second/deep/y -> second/deep/z",
    ]


def test_modifications():
    @ppl.program
    def model():
        normal("c", normal("b", normal("a")))

    chain = ["a -> b", "b -> c"]
    assert edges(model()) == chain
    assert edges(model().condition(b=1.0)) == chain
    assert edges(model().substitute(b=1.0)) == chain
    assert edges(model().scale(2.0).mask(b=True).detach()) == chain
    assert edges(model().intervene(b=1.0)) == ["b -> c"]
    assert edges(model().substitute(b=1.0).intervene(b=1.0, c=2.0)) == []
    kinds = {item.site.name: item.site.kind for item in dependence(model().condition(b=1.0)).nodes}
    assert kinds == {"a": "sample", "b": "observed", "c": "sample"}


def test_modifications_with_traced_values_inside_a_program():
    """A value set by a modification is a parent where it is itself random."""

    def model(verb):
        a, b = normal("a"), normal("b")
        ppl.sample("sub", getattr(link(a), verb)({"y": b}))

    assert edges(model, "condition") == ["a -> sub/y", "b -> sub/y", "sub/y -> sub/z"]
    assert edges(model, "substitute") == ["a -> sub/y", "b -> sub/y", "sub/y -> sub/z"]
    assert edges(model, "intervene") == ["b -> sub/y", "sub/y -> sub/z"]
    replaced = ppl.program(model)("substitute").substitute({"sub/y": 0.5})
    assert edges(replaced) == ["a -> sub/y", "sub/y -> sub/z"]


def test_an_intervened_site_in_a_branch_and_in_a_loop():
    def model():
        p = normal("p")
        jax.lax.cond(p > 0, lambda: normal("y", normal("x")), lambda: 0.0)
        jax.lax.scan(lambda c, _: (normal("w", normal("v", c)), None), 0.0, None, 3)

    assert edges(ppl.program(model)().intervene(x=1.0, v=jnp.zeros(3))) == ["p -> y", "x -> y", "v -> w"]


def test_masks_and_observations_that_depend_on_sites():
    def model():
        m, z = normal("m"), normal("z")
        ppl.sample("x", dist.Normal(0.0, 1.0).mask(m > 0), obs=z)

    assert edges(model) == ["m -> x", "z -> x"]


def test_factor_and_deterministic():
    def model():
        a = normal("a")
        d = ppl.deterministic("d", jnp.exp(a))
        ppl.factor("d", d + normal("b"))
        normal("c", d)

    graph = dependence(ppl.program(model)())
    assert edges(model) == ["a -> d", "d -> d", "b -> d", "d -> c"]
    assert [edge.into_factor for edge in graph.edges] == [False, True, True, False]


def test_unnormalized():
    program = ppl.unnormalized(lambda t: -(t["x"] ** 2) * t["y"], like={"x": 0.0, "y": 0.0})
    assert edges(program) == ["x -> log_rho", "y -> log_rho"]


def test_a_site_in_an_unknown_primitive_is_refused():
    def model():
        @jax.custom_batching.custom_vmap
        def odd(x):
            return normal("x", x)

        odd.def_vmap(lambda *_: None)
        odd(1.0)

    with pytest.raises(errors.UnsupportedPrimitiveError, match=r"custom_vmap.*'x'(.|\n)*test_dependence.py"):
        edges(model)


# Against the log density.


def deep():
    a, b = normal("a"), normal("b")

    @jax.jit
    def inner(a, b):
        return normal("c", a * b), normal("d", b)

    c, d = inner(a, b)
    normal("e", c)
    normal("f", d, a)


def state_space():
    def step(carry, _):
        z, w = carry
        new = normal("z", z)
        x = normal("x", new, w)
        return (new, normal("w", w)), x

    _, xs = jax.lax.scan(step, (normal("z0"), normal("w0")), None, 3)
    normal("y", xs)


def plates():
    mu = normal("mu")

    def group(m):
        theta = normal("theta", mu)
        return jax.vmap(lambda s: normal("x", theta * s))(jnp.arange(1.0, 3.0))

    xs = jax.vmap(group)(jnp.arange(2.0))
    normal("y", xs[0])


def second_order():
    def step(carry, _):
        before, last = carry
        return (last, normal("x", before)), None

    jax.lax.scan(step, (0.0, normal("x0")), None, 4, reverse=True)


def factors():
    a, b, c = normal("a"), normal("b"), normal("c")
    ppl.factor("w", jnp.sin(a * ppl.deterministic("d", b**2)))
    normal("e", c, obs=0.4)


@pytest.mark.parametrize("function", [deep, state_space, plates, second_order, factors])
def test_hessian_is_the_moral_graph(function):
    bound = ppl.program(function)()
    shapes = ppl.trace_shapes(bound)
    latents = {name: row.shape for name, row in shapes.items() if row.kind == "sample"}
    rng = np.random.default_rng(0)
    point = {name: jnp.asarray(rng.uniform(0.2, 0.9, shape)) for name, shape in latents.items()}
    hessian = jax.jit(jax.hessian(lambda trace: bound.log_density(trace)))(point)

    interacting = set()
    for p, q in itertools.combinations_with_replacement(latents, 2):
        block = np.array(hessian[p][q]).reshape(int(np.prod(latents[p])), -1)
        if p == q:
            block -= np.diag(np.diag(block))
        if np.any(np.abs(block) > 1e-6):
            interacting.add(frozenset((p, q)))

    assert interacting == moral(dependence(bound), latents)


def moral(graph, latents):
    """Pairs of latents that share a child, or of which one is the other's parent; deterministic nodes are paths.

    Sites under a loop or `vmap` interact with themselves where they recur, or where a site outside reads them all.
    """
    kinds = {item.site.address: item.site.kind for item in graph.nodes}
    outside = {item.site.name: not item.shape for item in graph.nodes}

    def families(node):
        for edge in graph.edges:
            if (edge.child, edge.into_factor) == node:
                if kinds[edge.parent] == "deterministic":
                    yield from families((edge.parent, False))
                else:
                    yield edge.parent[0], edge.recurrent

    pairs = set()
    for item in graph.nodes:
        if item.site.kind == "deterministic":
            continue
        family = set(families((item.site.address, item.site.kind == "factor")))
        if item.site.kind == "sample":
            family.add((item.site.name, False))
        for (p, _), (q, _) in itertools.combinations(sorted(family), 2):
            pairs.add(frozenset((p, q)))
        pairs |= {frozenset((p,)) for p, _ in family if outside[item.site.name] and not outside[p]}
    return {pair for pair in pairs if pair <= set(latents)}
