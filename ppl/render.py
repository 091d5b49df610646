"""A picture of a program: its dependency graph, read off its jaxpr, in plate notation."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jax.extend.core import Jaxpr
from jax.extend.core import primitives as jp

from ppl.estimated import estimated_p
from ppl.lanes import inner_jaxprs, lanes_p, site_of
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SUBSAMPLE, PlateAxis, Site, show, site_p
from ppl.transforms.dependence import Edge, dependence_of, intervened, node_key
from ppl.transforms.modify import Program, prepare
from ppl.transforms.stage import Located, sites

if TYPE_CHECKING:
    import graphviz

_GREY = "#6b6b6b"
_SHADE = "#d3d3d3"
_GRAPH = {"rankdir": "TB", "nodesep": "0.35", "ranksep": "0.4", "fontname": "Times", "fontsize": "12"}
_NODE = {"fontname": "Times", "fontsize": "15", "margin": "0.06,0.03", "width": "0.75", "height": "0.6"}
_EDGE = {"fontname": "Times-Italic", "fontsize": "11", "arrowsize": "0.7"}
_PLATE = {"style": "rounded", "labelloc": "b", "labeljust": "r", "margin": "12"}


def render(program: Program) -> graphviz.Digraph:
    """Draw a bound program's dependency graph in plate notation.

    The graph comes from the program's jaxpr: an arrow goes from each site to those that read its value directly, through
    whatever deterministic computation, and the sites that decide which branch of a `cond` is taken have arrows to the sites in
    the branches.

    - Latent sites are white ellipses, observed ones shaded, deterministic ones dashed; intervened sites are boxes, factors
      small black squares, and indices of a subsample small and grey. Under the address stands the distribution.
    - Plates, `vmap`s and loops are rounded boxes with their sizes: "data 10 of 100" is a batch of 10 from a population of
      100. Sites under the same names and sizes share a box.
    - A dashed arrow is a recurrence, from the step before (t-1) of a loop, or from the step after (t+1) of a reversed scan.
    - In SVG and notebooks, a node's tooltip is the source line of the site.

    Args:
        program: a bound program.

    Returns:
        A `graphviz.Digraph`: notebooks show it, `.render("file", format="png")` and `.pipe(format="svg")` need the
        `dot` program, `.source` does not. The same program gives the same source.

    Raises:
        ImportError: the Python package `graphviz` is missing.
        TypeError: the program is not bound to its arguments.

    Example:
        >>> import jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> from ppl.render import render
        >>> @ppl.program
        ... def eight_schools(sigma, y):
        ...     mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        ...     tau = ppl.sample("tau", dist.HalfCauchy(5.0))
        ...     def school(sigma, y):
        ...         theta = ppl.sample("theta", dist.Normal(mu, tau))
        ...         ppl.sample("y", dist.Normal(theta, sigma), obs=y)
        ...     ppl.plate("schools", school)(sigma, y)
        >>> picture = render(eight_schools(jnp.ones(8), jnp.zeros(8)))
        >>> [line.strip() for line in picture.source.splitlines() if "->" in line]
        ['mu -> theta', 'tau -> theta', 'theta -> y']
    """
    try:
        import graphviz
    except ImportError as error:
        raise ImportError(
            "ppl.render needs the Python package graphviz: pip install 'ppl[graph]'. To turn its graphs into pictures, "
            "install Graphviz itself too (the program dot, https://graphviz.org/download/)."
        ) from error
    if not hasattr(program, "modifications"):
        raise TypeError(f"ppl.render draws a bound program, got {program!r}: call it with its arguments.")
    prepared = prepare(program)
    graph = dependence_of(prepared)
    jaxpr = prepared.staged.jaxpr.jaxpr
    boxes: dict[Any, tuple[str, ...]] = {}
    for located, labels in zip(sites(jaxpr), _boxes(jaxpr), strict=True):
        boxes.setdefault(node_key(located.site), labels)
    root = _Box()
    for located in graph.nodes:
        root.inside(boxes[node_key(located.site)]).nodes.append(located)

    picture = graphviz.Digraph(graph_attr=_GRAPH, node_attr=_NODE, edge_attr=_EDGE)
    _draw(picture, root)
    kinds = {located.site.address: located.site.kind for located in graph.nodes if located.site.kind != FACTOR}
    for edge in graph.edges:
        child = _identity(edge.into_factor, show(edge.child))
        picture.edge(_identity(False, show(edge.parent)), child, **_edge_style(edge, kinds[edge.parent]))
    return picture


# Boxes.


@dataclasses.dataclass
class _Box:
    """A plate or loop, and what is in it."""

    nodes: list[Located] = dataclasses.field(default_factory=list)
    boxes: dict[str, _Box] = dataclasses.field(default_factory=dict)

    def inside(self, labels: tuple[str, ...]) -> _Box:
        return self.boxes.setdefault(labels[0], _Box()).inside(labels[1:]) if labels else self


def _boxes(jaxpr: Jaxpr) -> Iterator[tuple[str, ...]]:
    """The labels of the boxes around each site, outermost first, in the order of `sites`."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is site_p:
            plates = eqn.params["site"].plates
            yield tuple(_plate_label(plate.axis, plate.size) for plate in reversed(plates))
        elif eqn.primitive is estimated_p:
            for located in eqn.params["estimated"].located:
                yield tuple(f"{axis} {size}" for axis, size in zip(located.axes, located.shape, strict=False))
        elif site_of(eqn) is not None:
            for inner in inner_jaxprs(eqn.params):
                for labels in _boxes(inner):
                    yield (*_label(eqn), *labels)


def _label(eqn: Any) -> tuple[str, ...]:
    if eqn.primitive is jp.scan_p:
        return (f"scan {eqn.params['length']}",)
    if eqn.primitive is jp.while_p:
        return ("while",)
    if eqn.primitive is lanes_p:
        return (_plate_label(eqn.params["axis"], eqn.params["size"]),)
    return ()


def _plate_label(axis: PlateAxis | None, size: int) -> str:
    if axis is None:
        return f"vmap {size}"
    return f"{axis.name} {size}" + (f" of {axis.total}" if axis.total is not None else "")


# Drawing.


def _draw(picture: graphviz.Digraph, box: _Box, number: str = "") -> None:
    for located in box.nodes:
        site = located.site
        identity = _identity(site.kind == FACTOR, site.name)
        picture.node(identity, tooltip=_escape(str(site.where)), **_node_style(site))
    for i, (label, inner) in enumerate(box.boxes.items()):
        name = f"{number}_{i}"
        with picture.subgraph(name=f"cluster{name}", graph_attr={**_PLATE, "label": _escape(label)}) as cluster:
            _draw(cluster, inner, name)


def _node_style(site: Site) -> dict[str, str]:
    if site.kind == FACTOR:
        small = {"shape": "square", "style": "filled", "fillcolor": "black", "label": "", "width": "0.14", "height": "0.14"}
        return {**small, "fixedsize": "true", "xlabel": _text(site.name, None, 11)}
    if site.kind == SUBSAMPLE:
        grey = {"shape": "ellipse", "color": _GREY, "fontcolor": _GREY, "width": "0.4", "height": "0.3"}
        return {**grey, "label": _text(site.name, None, 11)}
    if intervened(site):
        return {"shape": "box", "label": _text(site.name, "do", 15)}
    label = _text(site.name, site.distribution_name, 15)
    if site.kind == DETERMINISTIC:
        return {"shape": "ellipse", "style": "dashed", "label": label}
    if site.kind == OBSERVED:
        return {"shape": "ellipse", "style": "filled", "fillcolor": _SHADE, "label": label}
    return {"shape": "ellipse", "label": label}


def _edge_style(edge: Edge, parent_kind: str) -> dict[str, str]:
    style = {"color": _GREY} if parent_kind == SUBSAMPLE else {}
    if edge.recurrent:
        style |= {"style": "dashed", "label": " t+1 " if edge.later else " t-1 ", "constraint": "false"}
    return style


def _text(name: str, below: str | None, size: int) -> str:
    """An HTML-like label: the address in italics, and in smaller type what stands below."""
    text = f'<I><FONT POINT-SIZE="{size}">{html.escape(_escape(name))}</FONT></I>'
    if below:
        text += f'<BR/><FONT POINT-SIZE="{size - 6}" COLOR="{_GREY}">{html.escape(_escape(below))}</FONT>'
    return f"<{text}>"


def _identity(is_factor: bool, name: str) -> str:
    """A node's name in DOT: the address, without what DOT or `graphviz` would read as syntax."""
    for character in '%:\\"<>':
        name = name.replace(character, f"%{ord(character):02X}")
    return f"factor {name}" if is_factor else name


def _escape(text: str) -> str:
    """Plain text as DOT text, in which backslashes escape."""
    return text.replace("\\", "\\\\")


__all__ = ["render"]
