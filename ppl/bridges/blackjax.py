"""BlackJAX's NUTS with its window adaptation, many chains in one compiled loop."""

from __future__ import annotations

from typing import Any

import jax


def run_nuts(potential: Any, start: Any, key: Any, warmup: int, draws: int, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Positions, divergences and leapfrog steps, each with axes `(chains, draws)` in front."""
    try:
        import blackjax
    except ImportError as error:
        raise ImportError("library='blackjax' needs BlackJAX: pip install 'ppl[mcmc]'") from error

    def log_density(position: Any) -> Any:
        return -potential(position)

    def chain(key: Any, position: Any) -> Any:
        adapt_key, run_key = jax.random.split(key)
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density, **options)
        (state, parameters), _ = adaptation.run(adapt_key, position, num_steps=warmup)
        step = blackjax.nuts(log_density, **parameters).step

        def one(state: Any, key: Any) -> Any:
            state, info = step(key, state)
            return state, (state.position, info.is_divergent, info.num_integration_steps)

        return jax.lax.scan(one, state, jax.random.split(run_key, draws))[1]

    chains = jax.tree.leaves(start)[0].shape[0]
    return jax.jit(jax.vmap(chain))(jax.random.split(key, chains), start)
