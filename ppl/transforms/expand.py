"""The sites of one function in another: as they are, or with a draw in place of each program whose density is an integral."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ppl.estimated import Estimated, bind, estimated_p, prefixed
from ppl.lanes import inner_jaxprs, site_of
from ppl.site import Address, PlateAxis, Site, rebind
from ppl.transforms.interpret import Record, run_staged
from ppl.transforms.stage import Located, Staged, stage


@dataclasses.dataclass(frozen=True)
class Inline:
    """Put sites into the program that is being traced, under a prefix."""

    prefix: Address = ()
    simulated: bool = False

    def zero(self) -> Any:
        return None

    def in_lane(self, axis: PlateAxis | None) -> Any:
        return self

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        return None

    def check(self, eqn: Any, site: Site) -> None:
        return

    def records(self, located: Located) -> bool:
        return False

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        address = (*self.prefix, *site.address)
        return rebind(site, leaves, address=address, simulated=site.simulated or self.simulated), None, None

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        return bind(prefixed(estimated, self.prefix), estimated.restore(leaves)), Record({}, None)


@dataclasses.dataclass(frozen=True)
class Expand(Inline):
    """The same, with the draws of estimated programs in place of these: their densities are not asked for."""

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        operands = estimated.restore(leaves)
        known, latent = estimated.given(operands), estimated.scored()

        def draw() -> list[Any]:
            drawn: Any = {}
            if not all(address in known for address in latent):
                drawn = estimated.integral.draw(operands.consts, estimated.changed(operands))
            return estimated.outs({**drawn, **known})

        prefix = (*self.prefix, *estimated.prefix)
        return run_staged(stage(draw), Expand(prefix, self.simulated))[0], Record({}, None)


def holds_estimated(jaxpr: Any) -> bool:
    """Whether a program with an estimated density stands anywhere in a jaxpr."""
    return any(
        eqn.primitive is estimated_p or (site_of(eqn) is not None and any(map(holds_estimated, inner_jaxprs(eqn.params))))
        for eqn in jaxpr.eqns
    )


def expanded(staged: Staged, again: Callable[..., Staged] = stage) -> Staged:
    """The same function with plain sites only. `again` stages it anew where that takes a change."""
    if not holds_estimated(staged.jaxpr.jaxpr):
        return staged
    return again(lambda: run_staged(staged, Expand())[0])
