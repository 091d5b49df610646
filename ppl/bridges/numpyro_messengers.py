"""NumPyro's messages as `ppl` statements.

The function runs below a NumPyro messenger of our own. NumPyro's plates and handlers inside the model do their work on each
message first, as they are further in; what reaches ours becomes a `ppl` statement.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from ppl import errors
from ppl.bridges.numpyro_scan import Message, Step, check_step, refuse
from ppl.bridges.numpyro_sites import check_scale, expand_by, extra_dimensions, is_leaf, log_factor, place, stand_in
from ppl.masks import plain
from ppl.program import deterministic, factor
from ppl.site import user_frame
from ppl.subsample import subsample


class Translator(Messenger):
    """Turns each message into a `ppl` statement. Nothing outside of it sees the messages."""

    def __init__(self, params: Mapping[str, Any]):
        super().__init__()
        self.params = params
        self.constraints: dict[str, Any] = {}
        self.indices: list[dict[str, Any]] = [{}]  # of subsampling plates; a dict for each body that we are inside of
        self.steps = 0

    def process_message(self, msg: Message) -> None:
        msg["stop"] = True
        translate = getattr(self, f"on_{msg['type']}", None)
        if translate is None:
            refuse(msg, "it has no translation. Do what it does outside of the model, and pass the result in.")
        translate(msg)

    def on_sample(self, msg: Message) -> None:
        name, value = msg["name"], msg["value"]
        if self.steps:
            check_step(msg)
        site = plain(msg["fn"])
        weight = log_factor(site)
        if weight is not None:
            if msg["scale"] is not None:
                check_scale(name, msg["scale"], jnp.shape(weight))
                weight = msg["scale"] * weight
            factor(name, weight)
        elif msg["is_observed"]:
            site = expand_by(site, extra_dimensions(name, site.distribution, value))
            place(name, site, scale=msg["scale"], obs=value)
        else:
            site = expand_by(site, msg["kwargs"].get("sample_shape", ()))
            msg["value"] = place(name, site, scale=msg["scale"], value=value)

    def on_deterministic(self, msg: Message) -> None:
        msg["value"] = deterministic(msg["name"], msg["value"])

    def on_plate(self, msg: Message) -> None:
        if msg["value"] is not None:  # all of it, or indices from a handler
            return
        name, sizes = msg["name"], msg["args"]
        known = next((level[name] for level in reversed(self.indices) if name in level), None)
        if known is None:
            known = self.indices[-1][name] = (sizes, self._draw_indices(name, *sizes))
        if known[0] != sizes:
            refuse(msg, f"it takes {sizes[1]} of {sizes[0]}, and took {known[0][1]} of {known[0][0]} before. Rename one.")
        msg["value"] = known[1]

    def _draw_indices(self, name: str, size: int, length: int) -> Any:
        return subsample(name, size, length)

    def on_subsample(self, msg: Message) -> None:
        """The plates do it, on the message's way back."""

    def on_inspect(self, msg: Message) -> None:
        """`numpyro.get_mask`: the answer is there already."""

    def on_prng_key(self, msg: Message) -> None:
        if msg["value"] is None and msg["kwargs"]["rng_key"] is None:
            refuse(
                msg,
                "the randomness of a program is in its sites: use numpyro.sample. (Statements that handlers.block hides, "
                "handlers.uncondition and networks with dropout ask for keys too; give these a key with "
                "numpyro.handlers.seed inside the model, if they are to be fixed. An autoguide or a stax module needs "
                "init_params once before it is used.)",
            )

    def on_mutable(self, msg: Message) -> None:
        refuse(
            msg, "programs are pure functions. Pass the state in as an argument and return it, or use a module without state."
        )

    def on_param(self, msg: Message) -> None:
        name = msg["name"]
        if msg["value"] is not None:
            return
        if name not in self.params:
            raise errors.MissingParameterError(
                f"the statement numpyro.param({name!r}) got no value.\n  {user_frame()}\n"
                "Give params= to the program: a dict of unconstrained values by name; "
                "init_params(key, *args) of the program returns one to start from."
            )
        msg["value"] = self._constrain(msg, self.params[name])

    def _constrain(self, msg: Message, value: Any) -> Any:
        constraint = self._constraint(msg, value)
        if constraint is not constraints.real:
            value = biject_to(constraint)(value)
        initial = msg["args"][0] if msg["args"] else None
        if initial is not None and jax.tree.map(jnp.shape, initial) != jax.tree.map(jnp.shape, value):
            raise errors.ValueShapeError(
                f"the value of the parameter {msg['name']!r} has shape {jax.tree.map(jnp.shape, value)} (under its "
                f"constraint), and its initial value has shape {jax.tree.map(jnp.shape, initial)}.\n  {user_frame()}"
            )
        return value

    def _constraint(self, msg: Message, value: Any) -> Any:
        stated = msg["kwargs"].get("constraint")
        constraint = self.constraints.setdefault(msg["name"], constraints.real if stated is None else stated)
        if stated is not None and str(stated) != str(constraint):
            refuse(msg, f"it states the constraint {stated}, and {constraint} (real, if none) before. State it in both places.")
        if constraint is not constraints.real and not is_leaf(value):
            refuse(msg, f"a tree of arrays cannot be under the constraint {constraint}. Make a statement of each array.")
        return constraint

    def on_control_flow(self, msg: Message) -> None:
        kind = getattr(msg["fn"], "__name__", "?")
        stack = msg["kwargs"].get("substitute_stack", ())
        if msg["kwargs"].get("enum") or any(verb == "replay" for verb, _ in stack):
            refuse(msg, "it stands in an enumerating handler or in handlers.replay. Leave the handler out.")
        if kind == "scan_wrapper":
            msg["value"] = self._scan(*msg["args"], stack=stack)
        elif kind == "cond_wrapper":
            msg["value"] = self._cond(*msg["args"])
        else:
            refuse(msg, f"{kind} is unknown. NumPyro's scan and cond, and JAX's control flow, may hold statements.")

    def _scan(self, f: Any, init: Any, xs: Any, length: Any, reverse: bool, *, stack: Any) -> Any:
        if length is None:
            length = jnp.shape(jax.tree.leaves(xs)[0])[0]

        def body(carry: Any, x: Any) -> Any:
            index, x = x
            with self._inside(step=True), Step(stack, index, length, nested=self.steps > 1):
                return f(carry, x)

        steps = jnp.arange(length)  # NumPyro counts in the order of execution
        carry, ys = jax.lax.scan(body, init, (steps[::-1] if reverse else steps, xs), length=length, reverse=reverse)
        return (length, None, carry), (_NOTHING, ys)

    def _cond(self, predicate: Any, true_fun: Any, false_fun: Any, operand: Any) -> Any:
        def branch(function: Any) -> Any:
            def body(operand: Any) -> Any:
                with self._inside():
                    return function(operand)

            return body

        return jax.lax.cond(predicate, branch(true_fun), branch(false_fun), operand), _NOTHING

    @contextlib.contextmanager
    def _inside(self, *, step: bool = False) -> Iterator[None]:
        """In a body, where what is computed must not leak out of."""
        self.indices.append({})
        self.steps += step
        try:
            yield
        finally:
            self.indices.pop()
            self.steps -= step


_NOTHING = SimpleNamespace(trace={})  # the sites of the body are in the program already


class Initializer(Translator):
    """Runs a function for the initial values of its parameters: draws what it must, and makes no sites."""

    def __init__(self, key: Any):
        super().__init__({})
        self.key = key
        self.count = 0
        self.initial: dict[str, Any] = {}

    def _next_key(self) -> Any:
        self.count += 1
        return jax.random.fold_in(self.key, self.count)

    def on_sample(self, msg: Message) -> None:
        if msg["value"] is None:
            msg["value"] = stand_in(msg["fn"], msg["kwargs"].get("sample_shape", ()), self._next_key())

    def on_deterministic(self, msg: Message) -> None:
        return

    def _draw_indices(self, name: str, size: int, length: int) -> Any:
        return jax.random.choice(self._next_key(), size, (length,), replace=False)

    def on_prng_key(self, msg: Message) -> None:
        if msg["kwargs"]["rng_key"] is None:
            msg["value"] = self._next_key()

    def on_param(self, msg: Message) -> None:
        name = msg["name"]
        if msg["value"] is not None:
            return
        if self.initial.get(name) is None:
            # A callable initial value asks for its key with a message of its own, which comes back to us.
            self.initial[name] = msg["fn"](*msg["args"], **msg["kwargs"])
        value = self.initial[name]
        if value is not None:
            self._constraint(msg, value)
        msg["value"] = value

    def unconstrained(self) -> dict[str, Any]:
        missing = [name for name, value in self.initial.items() if value is None]
        if missing:
            raise errors.MissingParameterError(f"the parameters {', '.join(map(repr, missing))} have no initial value.")
        return {name: self._unconstrain(name, value) for name, value in self.initial.items()}

    def _unconstrain(self, name: str, value: Any) -> Any:
        try:
            value = jax.tree.map(jnp.copy, value)  # an operation, which an escaped tracer refuses
            if not is_leaf(value):
                return value
        except jax.errors.UnexpectedTracerError as error:
            raise errors.NumPyroError(
                f"the initial value of the parameter {name!r} is computed in the body of a loop or branch. "
                "Move its numpyro.param statement out of the body."
            ) from error
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            value = value.astype(jnp.result_type(float))
        constraint = self.constraints.get(name, constraints.real)
        if constraint is constraints.real:
            return value
        if not isinstance(value, jax.core.Tracer) and not np.all(constraint(value)):
            raise errors.SupportError(f"the initial value of the parameter {name!r} is outside of {constraint}: {value}.")
        return biject_to(constraint).inv(value)
