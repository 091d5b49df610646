"""Generative flow networks: the same processes and losses over a discrete space that can be enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ppl
import ppl.distributions as dist
from ppl import objectives as obj
from ppl.transport import backward_process, forward_process

SIDE = 3
INNER = SIDE**2  # states 0 ... INNER - 1 are the cells of a grid, INNER ... 2 INNER - 1 the same cells, left for good
STEPS = 2 * (SIDE - 1) + 1
NEVER = -1e9

ROW, COLUMN = np.divmod(np.arange(INNER), SIDE)
REWARD = 0.1 + 2.0 * ((ROW != 1) & (COLUMN != 1)) + 0.5 * (ROW == COLUMN)


def moves():
    """Which state may follow which: one step down or right, or leaving; who has left stays."""
    cell = np.arange(INNER)
    allowed = np.zeros((2 * INNER, 2 * INNER), bool)
    allowed[cell[ROW + 1 < SIDE], cell[ROW + 1 < SIDE] + SIDE] = True
    allowed[cell[COLUMN + 1 < SIDE], cell[COLUMN + 1 < SIDE] + 1] = True
    allowed[cell, INNER + cell] = allowed[INNER + cell, INNER + cell] = True
    return allowed


MOVES = jnp.asarray(moves())
PARENTS = jnp.asarray(moves().T & (np.arange(2 * INNER) < INNER))
LOG_REWARD = jnp.asarray(np.concatenate([np.full(INNER, NEVER), np.log(REWARD)]))
DEPTH = jnp.asarray(np.concatenate([ROW + COLUMN] * 2))


def forward(logits, sharpness=1.0):
    def kernel(state, k):
        return dist.Categorical(logits=jnp.where(MOVES[state], sharpness * logits[state], NEVER))

    return forward_process(dist.Categorical(logits=jnp.where(jnp.arange(2 * INNER) == 0, 0.0, NEVER)), kernel, STEPS)


def parent(state, k):
    """Uniform among the cells that lead here. Who has left was still there at the time of the cell's depth, and not later."""
    left = (state >= INNER) & (k > DEPTH[state])
    return dist.Categorical(logits=jnp.where(jnp.where(left, jnp.arange(2 * INNER) == state, PARENTS[state]), 0.0, NEVER))


BACKWARD = backward_process(lambda state: LOG_REWARD[state], parent, STEPS, like=jnp.zeros((), int))


def flow(table):
    return lambda state, k: jnp.where(state >= INNER, LOG_REWARD[state], table[state])


LOSSES = {
    "trajectory": lambda p, b: obj.trajectory_balance(BACKWARD, forward(p["logits"]), p["log_z"], b),
    "detailed": lambda p, b: obj.detailed_balance(BACKWARD, forward(p["logits"]), p["log_z"], flow(p["flow"]), b),
    "sub": lambda p, b: obj.sub_trajectory_balance(BACKWARD, forward(p["logits"]), p["log_z"], flow(p["flow"]), 0.8, b),
    "log-variance": lambda p, b: obj.log_variance(BACKWARD, forward(p["logits"]), 2, b),
}


def terminal(logits):
    """The exact distribution of where the process ends."""
    transition = jax.nn.softmax(jnp.where(MOVES, logits, NEVER), axis=-1)
    return (jnp.eye(2 * INNER)[0] @ jnp.linalg.matrix_power(transition, STEPS))[INNER:]


def test_every_balance_reaches_the_exact_distribution_on_and_off_policy():
    behaviours = {"own": lambda p: None, "flatter": lambda p: forward(p["logits"], sharpness=0.5)}

    @ppl.expectation
    def objective(params):
        return sum(LOSSES[name](p, behaviours[policy](p)) for (name, policy), p in params.items())

    untrained = {"logits": jnp.zeros((2 * INNER, 2 * INNER)), "log_z": jnp.zeros(()), "flow": jnp.zeros(2 * INNER)}
    cases = [("trajectory", "own"), *((name, "flatter") for name in LOSSES)]
    start = dict.fromkeys(cases, untrained)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 400))
    params = ppl.minimize(
        objective, start, jax.random.key(0), optimizer=optimizer, steps=400, samples=16, progress=False
    ).params

    exact = REWARD / REWARD.sum()
    for (name, policy), p in params.items():
        distance = 0.5 * np.abs(terminal(p["logits"]) - exact).sum()
        assert distance < 0.02, (name, policy, distance)
        if name != "log-variance":
            assert abs(p["log_z"] - np.log(REWARD.sum())) < 0.04, (name, policy)
    assert 0.5 * np.abs(terminal(untrained["logits"]) - exact).sum() > 0.3
