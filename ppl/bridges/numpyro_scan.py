"""Statements in the body of NumPyro's `scan`, and what handlers around the scan do to them."""

from __future__ import annotations

from typing import Any, NoReturn

import jax.numpy as jnp
from numpyro.primitives import Messenger

from ppl import errors
from ppl.site import user_frame

Message = dict[str, Any]


def refuse(msg: Message, why: str) -> NoReturn:
    named = f" {msg['name']!r}" if msg.get("name") else ""
    raise errors.NumPyroError(
        f"the NumPyro statement{named} of type {msg['type']!r} cannot be translated.\n  {user_frame()}\n{why}"
    )


class Step(Messenger):
    """The innermost messenger in the body of a scan: gives each step its share of what handlers around the scan observe."""

    def __init__(self, stack: Any, index: Any, length: int, *, nested: bool):
        super().__init__()
        self.stack, self.index, self.length, self.nested = stack, index, length, nested

    def process_message(self, msg: Message) -> None:
        if msg["type"] not in ("sample", "deterministic") or "_control_flow_done" in msg:
            return
        msg["_control_flow_done"] = True  # the handlers around the scan shall not act on it as a whole
        if msg["type"] == "deterministic":
            return
        msg["_batch_shape_in_step"] = tuple(msg["fn"].batch_shape)
        for verb, given in self.stack:
            value = given(msg) if callable(given) else given.get(msg["name"])
            if value is not None:
                msg["value"] = self._of_step(msg, verb, value)
                msg["is_observed"] = msg["is_observed"] or verb == "condition"

    def _of_step(self, msg: Message, verb: str, value: Any) -> Any:
        one = len(msg["kwargs"].get("sample_shape", ())) + len(msg["fn"].shape())
        if jnp.ndim(value) == one:
            return value
        if self.nested or jnp.ndim(value) != one + 1 or jnp.shape(value)[0] != self.length:
            refuse(
                msg,
                f"a handlers.{verb} around a scan of length {self.length} gives it an array of shape {list(jnp.shape(value))}. "
                "It needs one value for every step, in a scan that is in no other scan: pass the values in as xs, with obs=.",
            )
        return jnp.asarray(value)[self.index]


def check_step(msg: Message) -> None:
    """Refuse what a handler around a scan did to a statement in its body, if NumPyro does that to the stacked statement."""
    before = msg.get("_batch_shape_in_step")
    if before is None:
        refuse(msg, "handlers.lift around a scan makes a latent of a param in its body. Move the param out of the body.")
    elif tuple(msg["fn"].batch_shape) != before:
        refuse(
            msg,
            f"a handler around a scan changes its batch shape in a step from {list(before)} to {list(msg['fn'].batch_shape)}. "
            "An array of masks has to be given in the body, step by step: pass it in as xs.",
        )
