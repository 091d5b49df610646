"""`marginal(...)` and `normalize(...)` in a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppl.lang import tree
from ppl.lang.densities import bind, program_of
from ppl.lang.distributions import estimator
from ppl.lang.environment import Environment
from ppl.lang.evaluate import evaluate, size
from ppl.lang.values import ProgramValue, whole
from ppl.transforms.marginal import marginal
from ppl.transforms.normalize import normalize


def program(node: tree.Call, env: Environment) -> ProgramValue:
    """The program that integrates or normalizes another.

    It is `marginal(q, x, y, proposal = r, particles = 5)` or `normalize(p, proposal = q, particles = 10)`. A model
    is conditioned on its data. What the first program is given, the result is given.
    """
    assert isinstance(node.function, tree.Name)
    verb = node.function.id
    inner, given, _ = program_of(node.arguments[0].value, env)
    options = {a.name: a.value for a in node.arguments if a.name is not None}
    keep = [_address(a.value) for a in node.arguments[1:] if a.name is None]
    numbers = {name: size(options[name], env) for name in ("particles", "nodes") if name in options}

    def make(arguments: tuple[Any, ...], observed: Mapping[str, Any], value: ProgramValue = inner) -> Any:
        data = {name: env.values[name] for name in sorted(value.observes) if name in env.values} | dict(observed)
        own = tuple(whole(evaluate(a.value, env)) for a in given) + arguments
        bound = value.bind(own, data)
        if verb == "normalize":
            by, by_given, _ = program_of(options["proposal"], env)
            other = bind(by, by_given, {}, env, node)
            return normalize(bound, proposal=other, estimator=estimator(options.get("using"), env), **numbers)
        return marginal(bound, keep, proposal=_reverse(options, env), **numbers)

    def freeze() -> ProgramValue:
        held = inner.frozen()
        return ProgramValue(lambda a, o: make(a, o, held), held.names, observes, True)

    observes = frozenset() if verb == "normalize" else inner.observes
    return ProgramValue(make, () if given else inner.names, observes, inner.constant, freeze)


def _address(node: tree.Node) -> str:
    if isinstance(node, tree.Field):
        return f"{_address(node.value)}/{node.name}"
    assert isinstance(node, tree.Name)
    return node.id


def _reverse(options: Mapping[str, tree.Node], env: Environment) -> Any:
    """The proposal: a bound program, or a function of the kept values where the program is given some of them by name."""
    if "proposal" not in options:
        return None
    by, given, _ = program_of(options["proposal"], env)
    if given or not by.names:
        return bind(by, given, {}, env, options["proposal"])
    return lambda trace: by.bind(tuple(trace[name] for name in by.names), {})
