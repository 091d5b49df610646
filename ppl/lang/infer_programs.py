"""Programs in expressions: densities, what is drawn from them, marginals and normalized programs."""

from __future__ import annotations

from typing import Any

from ppl.lang import infer, infer_calls, tree, types
from ppl.lang.diagnostics import did_you_mean
from ppl.lang.scope import Scope
from ppl.lang.tree import Node
from ppl.lang.types import ANY, Array


def infer_density(node: tree.Call, program: types.Program, scope: Scope) -> Any:
    """`p(z, y | x)`: checks the traces and data, and that they are what the program draws."""
    named: set[str] = set()
    sites: dict[str, Any] | None = {}
    for argument in node.arguments:
        kind = infer.infer(argument.value, scope)
        value = argument.value
        if isinstance(kind, types.Trace):
            if kind.count is not None:
                return scope.error(
                    value, f"this is {scope.report.sizes.show(kind.count)} draws of {kind.program}", "Pick one: z[k]."
                )
            sites = None if sites is None or not kind.sites else {**sites, **kind.sites}
        elif isinstance(value, tree.Name) and value.id in program.observed:
            named.add(value.id)
        elif isinstance(value, tree.Name) and value.id in program.covariates:
            return scope.error(
                value,
                f"{value.id} is not observed in {program.name}: it stands at no site",
                f"Leave it out: {program.name} knows it.",
            )
        elif kind is not ANY and program.sites is not None:
            return scope.error(value, f"expected a draw, or data that {program.name} observes")
        else:
            sites = None
    _given(node, node.given, program, scope)
    missing = sorted(program.observed - named)
    if missing:
        shown = ", ".join(missing)
        written = ", ".join(_shown(a.value) for a in node.arguments)
        return scope.error(
            node,
            f"the density of {program.name} leaves out the data {shown}",
            f"Write {program.name}({', '.join([written, *missing])}).",
        )
    if sites is not None and program.sites is not None:
        _compare(node, program, sites, scope)
    return Array()


def _shown(node: Node) -> str:
    from ppl.lang.printer import expression

    return expression(node)


def _compare(node: tree.Call, program: types.Program, sites: dict[str, Any], scope: Scope) -> None:
    assert program.sites is not None
    wanted = {name: kind for name, kind in program.sites.items() if name not in program.observed}
    missing = [name for name in wanted if name not in sites]
    extra = [name for name in sites if name not in wanted and sites[name] is not None]
    if missing or extra:
        parts = [f"{program.name} has {', '.join(missing)}, which was not drawn"] * bool(missing)
        parts += [f"{', '.join(extra)} was drawn, which {program.name} does not have"] * bool(extra)
        scope.error(
            node, "the draw does not fit: " + "; ".join(parts), did_you_mean(missing[0], extra) if missing and extra else ""
        )
        return
    for name, kind in wanted.items():
        other = sites[name]
        if isinstance(kind, Array) and isinstance(other, Array) and kind.shape != other.shape:
            scope.error(
                node,
                f"{name} has the shape {scope.shape(kind.shape)} in {program.name}, "
                f"and was drawn with {scope.shape(other.shape)}",
            )


def _given(node: Node, given: tuple[tree.Argument, ...], program: types.Program, scope: Scope) -> None:
    for argument in given:
        infer.infer(argument.value, scope)
    if program.sites is not None and len(given) not in (len(program.names), program.total + len(program.names)):
        names = ", ".join(program.names) or "nothing"
        scope.error(node, f"{program.name} is given {len(given)} values, and takes {len(program.names)} ({names})")


def source_type(node: Node, scope: Scope) -> Any:
    """The type of what stands behind `~`; a program is checked with what it is given."""
    if isinstance(node, tree.Call):
        if isinstance(node.function, tree.Name) and scope.lookup(node.function.id) is not None:
            kind = scope.lookup(node.function.id)
            if isinstance(kind, types.Program):
                _given(node, node.arguments, kind, scope)
                return kind
        elif isinstance(node.function, tree.Call):
            kind = infer.infer(node.function, scope)
            if isinstance(kind, types.Program):
                _given(node, node.arguments, kind, scope)
            return kind
    kind = infer.infer(node, scope)
    if isinstance(kind, types.Program) and isinstance(node, tree.Name):
        _given(node, (), kind, scope)
    return kind


def infer_estimand(node: tree.Call, scope: Scope) -> Any:
    """`marginal(q, x, y, proposal = r)` and `normalize(p, proposal = q, particles = 10)`."""
    assert isinstance(node.function, tree.Name)
    verb = node.function.id
    known = ("proposal", "particles", "nodes") if verb == "marginal" else ("proposal", "particles", "using")
    if not node.arguments or node.arguments[0].name is not None:
        return scope.error(node, f"{verb} takes a program first")
    inner = source_type(node.arguments[0].value, scope)
    options = {a.name: a for a in node.arguments if a.name is not None}
    for name, argument in options.items():
        if name not in known:
            return scope.error(argument, f"{verb} has no option {name!r}", did_you_mean(str(name), known))
        if name in ("particles", "nodes"):
            infer.size(argument.value, scope)
        elif name == "proposal" and not isinstance(kind := _proposal(argument.value, scope), types.Program) and kind is not ANY:
            scope.error(argument.value, "a proposal is a program")
    if verb == "normalize" and not {"proposal", "particles"} <= set(options):
        return scope.error(
            node, "normalize needs a proposal and a number of particles", "normalize(p, proposal = q, particles = 10)"
        )
    if not isinstance(inner, types.Program):
        return inner if inner is ANY else scope.error(node.arguments[0], f"{verb} takes a program")
    keep = node.arguments[1:]
    kept = dict(inner.sites) if inner.sites is not None else None
    if verb == "marginal":
        names = [a.value.id for a in keep if isinstance(a.value, tree.Name) and a.name is None]
        if not names:
            return scope.error(node, "marginal needs the names that are kept", "marginal(q, x, y) keeps x and y.")
        if kept is not None:
            for argument in keep:
                if (
                    argument.name is None
                    and isinstance(argument.value, tree.Name)
                    and argument.value.id not in {n.split("/")[0] for n in kept}
                ):
                    return scope.error(
                        argument, f"{inner.name} draws no {argument.value.id!r}", did_you_mean(argument.value.id, kept)
                    )
            kept = {n: k for n, k in kept.items() if n.split("/")[0] in names or n in inner.observed}
    given = () if isinstance(node.arguments[0].value, tree.Call) else inner.names
    if kept is not None and verb == "normalize":
        kept = {n: k for n, k in kept.items() if n not in inner.observed}
    observed = inner.observed if verb == "marginal" else frozenset()
    return types.Program(f"{verb}({inner.name})", given, 0, kept, observed, inner.covariates)


def _proposal(node: Node, scope: Scope) -> Any:
    if isinstance(node, tree.Name):
        return infer.infer(node, scope)
    return source_type(node, scope)


def infer_expectation(node: tree.Binder, scope: Scope) -> Any:
    """`E[draws] body`."""
    if scope.kind != "objective":
        return scope.error(node, "an expectation stands in an objective")
    inner = scope.child()
    for clause in node.clauses:
        if not isinstance(clause, tree.Draw):
            return scope.error(clause, "expected a draw: E[z ~ q]")
        check_draw(clause, inner)
    return infer.infer_array(node.body, inner)


def check_draw(node: tree.Draw, scope: Scope) -> None:
    """A draw in an expectation: names what is drawn."""
    kind = source_type(node.source, scope)
    target = node.target
    joint: list[str] = []
    if isinstance(target, tree.Tuple):
        if not all(isinstance(item, tree.Name) for item in target.items):
            scope.error(target, "expected names: (z, y) ~ p")
            return
        joint = [item.id for item in target.items[1:]]  # type: ignore[attr-defined]
        target = target.items[0]
    counts: list[int] = []
    if isinstance(target, tree.Index):
        for place in target.places:
            found = infer.interval(place, scope)
            if found is not None and found[0] != 1:
                scope.error(place, "draws are counted from 1")
            counts.append(found[1] if found else 1)
        target = target.value
    if not isinstance(target, tree.Name):
        scope.error(node.target, "expected a name: E[z ~ q], or E[z[1..K] ~ q] for several draws")
        return
    if not joint and (scope.lookup(target.id) is not None or infer_calls.known(target.id)):
        scope.error(target, f"{target.id!r} already stands for something else here", "Give the draw a name of its own.")
    if node.estimator is not None:
        check_estimator(node.estimator, scope)
    scope.names[target.id] = _drawn(node, kind, counts, joint, scope)


def _drawn(node: tree.Draw, kind: Any, counts: list[int], joint: list[str], scope: Scope) -> Any:
    if isinstance(kind, types.Program):
        wrong = [name for name in joint if name not in kind.observed]
        if wrong and kind.sites is not None:
            return scope.error(node.target, f"{kind.name} observes no {wrong[0]!r}", did_you_mean(wrong[0], kind.observed))
        sites = kind.sites or {}
        for name in joint:
            scope.names[name] = sites.get(name, ANY)
        left = {n: k for n, k in sites.items() if n not in kind.observed}
        return types.Trace(left, kind.name, counts[0] if counts else None)
    if joint:
        return scope.error(node.target, "only a program draws several things")
    if isinstance(kind, types.Distribution):
        return Array((*counts, *kind.shape), kind.dtype, zero_based=kind.zero_based)
    if isinstance(kind, Array):
        if not kind.shape:
            return scope.error(node.source, "a number is nothing to draw from", "Rows of data are: x ~ X.")
        return Array((*counts, *kind.shape[1:]), kind.dtype)
    return ANY if kind is ANY else scope.error(node.source, "expected a program, a distribution or data")


def check_estimator(node: Node, scope: Scope) -> None:
    """What stands behind `using`."""
    from ppl.lang.builtins import ESTIMATORS

    name = node if isinstance(node, tree.Name) else getattr(node, "function", None)
    if not isinstance(name, tree.Name):
        scope.error(node, "expected an estimator", f"There are {', '.join(sorted(ESTIMATORS))}.")
        return
    if name.id not in ESTIMATORS:
        if scope.lookup(name.id) is ANY:
            return
        hint = did_you_mean(name.id, ESTIMATORS) or f"There are {', '.join(sorted(ESTIMATORS))}."
        scope.error(name, f"there is no estimator {name.id!r}", hint)
        return
    if isinstance(node, tree.Call):
        for argument in node.arguments:
            value = argument.value
            inner = value.function if isinstance(value, tree.Call) else value
            if isinstance(inner, tree.Name) and (inner.id in ESTIMATORS or inner.id in ("true", "false")):
                continue
            infer.infer(value, scope)
