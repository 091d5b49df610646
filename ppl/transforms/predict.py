"""`predict`: what was observed is drawn anew, given values for what was not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ppl import errors
from ppl.address import flatten, nest
from ppl.estimated import Estimated
from ppl.site import FACTOR, OBSERVED, SAMPLE, SUBSAMPLE, Address, Site, rebind
from ppl.transforms.interpret import Record, run_staged
from ppl.transforms.modify import Program, prepare
from ppl.transforms.seed import Seed
from ppl.transforms.simulate import choices_of, fresh, given_value
from ppl.transforms.stage import Located
from ppl.transforms.values import check_value


@dataclasses.dataclass(frozen=True)
class Predict(Seed):
    """Every site but factors is recorded; sites in a `while_loop`, whose number is unknown, are not."""

    def records(self, located: Located) -> bool:
        return located.site.kind != FACTOR

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        if site.kind == FACTOR:
            return given_value(site, leaves), None, None
        if "trace" in given:
            value = given["trace"]
        elif site.kind == OBSERVED:
            value = rebind(site, leaves, keep=("distribution",), kind=SAMPLE, estimator=None, simulated=True)
        elif site.kind == SUBSAMPLE:
            value = fresh(site, leaves)
        else:
            value = given_value(site, leaves)
            value = fresh(site, leaves) if value is None else value
        return value, value, None

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        operands = estimated.restore(leaves)
        observed = {estimated.inner(item.site.address) for item in estimated.located if item.site.kind == OBSERVED}
        known = {a: v for a, v in estimated.given(operands).items() if a not in observed}
        known |= {estimated.inner(a): roles["trace"] for a, roles in given.items() if "trace" in roles}
        missing = [a for a in estimated.scored() if a not in known]
        if missing and len(missing) < len(estimated.scored()):
            raise errors.NoSamplerError(
                f"{estimated.site.name!r} and its neighbours have one joint density, an integral, and some of them are given: "
                f"the rest cannot be drawn.\n  {estimated.site.where}\nPredict with the model before it was integrated."
            )
        if missing:
            changes = [
                (verb, {a: v for a, v in values.items() if not (verb == "condition" and a in observed)})
                for verb, values in estimated.changed(operands)
            ]

            def draw() -> dict[Address, Any]:
                return dict(estimated.integral.draw(operands.consts, [change for change in changes if change[1]]))

            known |= choices_of(draw, estimated.prefix)
        outs = estimated.outs(known)
        return outs, Record({item.site.address: out for item, out in zip(estimated.located, outs, strict=True)}, None)


def predict(program: Program, trace: Mapping[str, Any]) -> Any:
    """Draw everything that a trace does not give, observed sites too, as random choices of the function that calls this.

    Args:
        program: a bound program.
        trace: nested dict of values for some sites. Values of deterministic ones are ignored and computed anew.

    Returns:
        The nested dict of the values of all sites.
    """
    prepared = prepare(program)
    table = {item.site.address: item for item in prepared.table if item.site.kind in (SAMPLE, OBSERVED, SUBSAMPLE)}
    values = {
        address: check_value(value, table[address].site, table[address].shape, observed=False)
        for address, value in flatten(trace).items()
        if address in table
    }
    _, record = run_staged(prepared.staged, prepared.rule(Predict()), prepared.inputs(trace=values))
    return nest(record.values)


__all__ = ["predict"]
