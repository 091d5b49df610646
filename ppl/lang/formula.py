"""One objective from a formula, over programs from Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ppl.lang.check import check_formula
from ppl.lang.diagnostics import Source
from ppl.lang.environment import Environment
from ppl.lang.evaluate import evaluate
from ppl.lang.parser import parse_expression
from ppl.lang.programs import fixed
from ppl.lang.values import whole
from ppl.program import Bound, Program
from ppl.transforms.expectation import Expectation


def objective(formula: str, /, **names: Any) -> Expectation:
    """An objective written as in a paper, such as `E[z ~ q] log p(z) - log q(z)`.

    Args:
        formula: an expression in the language of `docs/language.md`.
        names: what the names in it stand for: bound programs; programs (or functions that return bound ones), which are called
            with the objective's arguments; functions of arrays; arrays and numbers.

    Returns:
        An expectation. Its arguments are given to all programs that are not bound, by name where their parameters' names say
        so: an argument goes to the programs that have a parameter of this name. A positional argument goes to all of them.

    Raises:
        LanguageError: the formula is wrong; it says where.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> @ppl.program
        ... def family(mean):
        ...     ppl.sample("z", dist.Normal(mean, 0.5**0.5))
        >>> elbo = ppl.objective("E[z ~ q] log p(z) - log q(z)", p=model(), q=family)
        >>> print(f"{elbo.estimate(jax.random.key(0), 0.5):.4f}")  # at the posterior: log evidence, exactly
        -1.5155
    """
    source = Source("<formula>", formula)
    node = parse_expression(formula)
    check_formula(node, source, names)

    def function(*args: Any, **kwargs: Any) -> Any:
        values = {name: _value(value, args, kwargs) for name, value in names.items()}
        return whole(evaluate(node, Environment(source, values, name="formula", objective=True)))

    function.__name__ = function.__qualname__ = "objective"
    return Expectation(function)


def _value(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(value, Bound):
        return fixed(value)
    if isinstance(value, Program):
        return fixed(_called(value, value.function, args, kwargs))
    return value


def _called(program: Callable[..., Any], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A program with the arguments of the objective that it takes."""
    signature = inspect.signature(function)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return program(*args, **kwargs)
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in signature.parameters.values())
    variadic = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    named = {name: value for name, value in kwargs.items() if name in signature.parameters}
    return program(*(args if variadic else args[:count]), **named)
