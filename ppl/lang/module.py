"""A `.vi` file elaborated: its programs, objectives and fits, with its data."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from ppl import errors
from ppl.lang import tree
from ppl.lang.check import check
from ppl.lang.data import bind_data
from ppl.lang.diagnostics import Diagnostic, Source, at, did_you_mean, fail
from ppl.lang.environment import Environment
from ppl.lang.evaluate import evaluate
from ppl.lang.fits import FitSpec
from ppl.lang.parameters import Parameters
from ppl.lang.parser import parse_source, read
from ppl.lang.programs import program_value
from ppl.lang.statements import run_block
from ppl.lang.values import FunctionValue, whole
from ppl.program import Bound, Program, inline
from ppl.transforms.expectation import Expectation


class Unit(NamedTuple):
    """One item, and the text it is from."""

    item: tree.Node
    source: Source


class Module:
    """What a `.vi` file says, with its data.

    Attribute access gives what the file names: `module.schools` is a `ppl.Program`, called with the program's parameters by
    name; `module.elbo` a `ppl.Expectation` of the parameters as `init` makes them.

    Attributes:
        units: the file's items and those of the files that it imports.
        data: arrays by name, as they were given.
        fits: the file's fit statements, ready to run.
    """

    def __init__(self, units: tuple[Unit, ...], data: Mapping[str, Any] | None, imported: Mapping[str, Any]):
        self.units, self._imported = units, dict(imported)
        self._given = dict(data or {})
        self.sizes, self.data = bind_data(units, self._given)
        if self.sizes:
            check(units, self.sizes, imported)
        self._made: dict[Any, Expectation] = {}
        self.parameters = Parameters(self)

    @property
    def source(self) -> Source:
        return self.units[-1].source if self.units else Source("<text>", "")

    def with_data(self, data: Mapping[str, Any] | None = None, /, **by_name: Any) -> Module:
        """The same file with these data (added to those that it has).

        Raises:
            LanguageError: data of another shape than declared.
        """
        return Module(self.units, {**self._given, **(data or {}), **by_name}, self._imported)

    def items(self, *kinds: type) -> dict[str, Unit]:
        """The items of some kinds, by name."""
        return {unit.item.name: unit for unit in self.units if isinstance(unit.item, kinds)}  # type: ignore[attr-defined]

    @property
    def declared(self) -> dict[str, tuple[tree.Declaration, Source]]:
        """The data declarations."""
        return {d.name: (d, u.source) for u in self.units if isinstance(u.item, tree.Data) for d in u.item.declarations}

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(self.items(tree.Program, tree.Alias))

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.items(tree.Objective))

    @functools.cached_property
    def fits(self) -> tuple[FitSpec, ...]:
        return tuple(FitSpec(self, u.item, u.source) for u in self.units if isinstance(u.item, tree.Fit))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.programs, *self.objectives]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "units" not in self.__dict__:
            raise AttributeError(name)
        if name in self.objectives:
            return self.objective(name)
        if name in self.programs:
            return self.program(name)
        known = (*self.programs, *self.objectives)
        raise AttributeError(f"the file {self.source.name} has no {name!r}. {did_you_mean(name, known)}".rstrip())

    def program(self, name: str) -> Program:
        """A model, conditioned on the data, or a family: a function of its parameters, which have their constraints.

        Raises:
            DataError: the file's data have not been given.
        """
        item = self._item(name, tree.Program, tree.Alias)

        def function(*args: Any, **kwargs: Any) -> Any:
            return inline(self._bound(item, args, kwargs), ())

        function.__name__ = name
        return Program(function)

    def _bound(self, item: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bound:
        if isinstance(item, tree.Alias):
            env = self.environment(kwargs.pop("params", None) if isinstance(kwargs, dict) else None)
            value = env.values[item.name]
            return value.bind(args, {n: env.values[n] for n in value.observes})  # type: ignore[no-any-return]
        names = [p.name for p in (*item.parameters, *item.given)]
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        if len(args) > len(names) or set(given) != set(names):
            raise TypeError(f"{item.name} takes {', '.join(names) or 'no parameters'}; got {', '.join(given) or 'none'}")
        env = self.environment(None)
        value = env.values[item.name]
        data = {n: env.values[n] for n in sorted(value.observes)}
        return value.bind(tuple(given[n] for n in names), data)  # type: ignore[no-any-return]

    def at(self, name: str, params: Any) -> Bound:
        """A program with its learned parameters taken from `params`, as `init` makes them; a model is conditioned on the data,
        and what a program is given (`q(m: real | x: real)`) are the data of these names.

        With `functools.partial(module.at, "q")` this is the family of a fit: a function of its parameters.
        """
        self._item(name, tree.Program, tree.Alias)
        env = self.environment(params)
        value = env.values[name]
        missing = [given for given in value.names if given not in self.data]
        if missing:
            raise errors.DataError(f"{name} is given {', '.join(missing)}, which the file {self.source.name} has no data for")
        given = tuple(env.values[given] for given in value.names)
        return value.bind(given, {n: env.values[n] for n in sorted(value.observes)})  # type: ignore[no-any-return]

    def is_given_data(self, name: str) -> bool:
        """Whether the file's data are all that a program is given, in name and shape: what `at` needs."""
        item = self._item(name, tree.Program, tree.Alias)
        if isinstance(item, tree.Alias):
            return True
        return all(
            given.name in self.data
            and (given.type is None or self.parameters.shape(given, self.environment(None)) == jnp.shape(self.data[given.name]))
            for given in item.given
        )

    def _item(self, name: str, *kinds: type) -> Any:
        items = self.items(*kinds)
        if name not in items:
            raise AttributeError(f"the file {self.source.name} has no {name!r}. {did_you_mean(name, items)}".rstrip())
        return items[name].item

    def objective(self, name: str, **settings: int) -> Expectation:
        """An objective of the file, with its settings (`K = 10`) replaced by these: a function of the parameters."""
        key = (name, tuple(sorted(settings.items())))
        if key not in self._made:  # one object, so that what was compiled for it is found again
            self._made[key] = self._objective(name, settings)
        return self._made[key]

    def _objective(self, name: str, settings: Mapping[str, int]) -> Expectation:
        item = self._item(name, tree.Objective)
        unknown = set(settings) - {s.name for s in item.settings}
        if unknown:
            known = ", ".join(s.name for s in item.settings) or "none"
            raise TypeError(f"the objective {name!r} has no setting {sorted(unknown)[0]!r}; it has {known}")
        source = self.items(tree.Objective)[name].source

        def function(params: Any = None) -> Any:
            env = self.environment(params).child(source=source, name=name, objective=True)
            for setting in item.settings:
                env.values[setting.name] = evaluate(setting.value, env)
            env.values.update(settings)
            return jnp.asarray(whole(run_block(item.body, env)), float)  # whole numbers are numbers

        function.__name__ = function.__qualname__ = name
        return Expectation(function)

    def init(self, key: Any = None) -> dict[str, Any]:
        """Initial parameters: free of constraints, by name, those of a program in a dict of their own."""
        return self.parameters.init(key)

    def constrain(self, params: Any) -> dict[str, Any]:
        """Parameters with the constraints that their types state, from those that are optimized."""
        return self.parameters.constrain(params)

    def environment(self, params: Any) -> Environment:
        """The names of the file and what they stand for, with the parameters as they are optimized."""
        missing = [name for name in self.declared if name not in self.data]
        if missing:
            raise errors.DataError(
                f"the file {self.source.name} declares data that were not given: {', '.join(missing)}. Give them: "
                f"module.with_data({missing[0]}=...)"
            )
        values = self.parameters.constrain(params) if params is not None else {}
        base = Environment(self.source, {**self.sizes, **{k: _array(v) for k, v in self.data.items()}, **self._imported})
        for unit in self.units:
            env = base if unit.source == base.source else _shared(base, unit.source)
            self._define(unit.item, env, values)
        return base

    def _define(self, item: tree.Node, env: Environment, values: Mapping[str, Any]) -> None:
        data = frozenset(self.declared)
        if isinstance(item, tree.Params):
            env.values.update({p.name: values[p.name] for p in item.parameters if p.name in values})
        elif isinstance(item, tree.Function):
            env.values[item.name] = FunctionValue(item, env)
        elif isinstance(item, tree.Program):
            env.values[item.name] = program_value(item, env, values.get(item.name, {}), data)
        elif isinstance(item, tree.Alias):
            env.values[item.name] = evaluate(item.value, env)

    def __repr__(self) -> str:
        return f"<{self.source.name}: {', '.join((*self.programs, *self.objectives))}>"


def _shared(base: Environment, source: Source) -> Environment:
    """The environment of an imported file: the same names, another text."""
    return Environment(source, base.values)


def _array(value: Any) -> Any:
    return value if isinstance(value, int) else jnp.asarray(value)


def load(path: str | os.PathLike[str], data: Mapping[str, Any] | None = None, *, python_imports: bool = False) -> Module:
    """Read, check and elaborate a file (or a text) in the language of `docs/language.md`.

    Args:
        path: of a `.vi` file; or the text itself.
        data: arrays by name; `module.with_data` gives them later.
        python_imports: whether `from module import name` may import Python modules, which run code.

    Raises:
        LanguageError: the text is wrong; all that was found is in it.

    Example:
        >>> import jax, ppl.lang
        >>> module = ppl.lang.load('''
        ... data y: real
        ... model normal:
        ...     mu ~ Normal(0, 1)
        ...     y ~ Normal(mu, 1)
        ... ''', {"y": 0.5})
        >>> print(f"{module.normal().log_density({'mu': 0.0}):.4f}")
        -1.9629
    """
    source = read(path)
    units, imported = _collect(source, python_imports)
    check(units, {}, imported)
    return Module(units, data, imported)


def _collect(source: Source, python_imports: bool) -> tuple[tuple[Unit, ...], dict[str, Any]]:
    """The items of a file and of those that it imports, each once, imported ones first."""
    units: list[Unit] = []
    imported: dict[str, Any] = {}
    diagnostics: list[Diagnostic] = []
    seen: set[str] = {os.path.realpath(source.name)}

    def visit(source: Source, depth: int) -> None:
        for item in parse_source(source).items:
            if isinstance(item, tree.ImportPython):
                try:
                    imported.update(_python(item, source, python_imports))
                except errors.LanguageError as error:
                    diagnostics.extend(error.diagnostics)
            elif not isinstance(item, tree.ImportFile):
                units.append(Unit(item, source))
            else:
                path = Path(source.name).parent / item.path
                if depth > 50:
                    raise fail([at(source, item.span, "files import one another more than 50 levels deep")])
                if os.path.realpath(path) in seen:
                    continue
                seen.add(os.path.realpath(path))
                try:
                    inner = read(path)
                except OSError as error:
                    diagnostics.append(at(source, item.span, f"cannot read {str(path)!r}: {error.strerror}"))
                    continue
                visit(inner, depth + 1)

    visit(source, 0)
    if diagnostics:
        raise fail(diagnostics)
    return tuple(units), imported


def _python(item: tree.ImportPython, source: Source, allowed: bool) -> dict[str, Any]:
    if not allowed:
        hint = "If you trust the module, whose code runs: ppl.load(..., python_imports=True), or --python-imports."
        raise fail([at(source, item.span, f"Python imports are not allowed here: {item.module}", hint)])
    folder = str(Path(source.name).resolve().parent)
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(item.module)
    except ImportError as error:
        raise fail([at(source, item.span, f"cannot import {item.module}: {error}")]) from error
    finally:
        if added:
            sys.path.remove(folder)
    missing = [name for name in item.names if not hasattr(module, name)]
    if missing:
        hint = did_you_mean(missing[0], dir(module))
        raise fail([at(source, item.span, f"the module {item.module} has no {missing[0]!r}", hint)])
    return {name: getattr(module, name) for name in item.names}
