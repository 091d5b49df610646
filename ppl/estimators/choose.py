"""The estimator of a site for which the user names none."""

from __future__ import annotations

from typing import Any

from ppl import errors
from ppl.estimators.protocol import Estimator
from ppl.estimators.reparameterize import Reparameterize, pathwise
from ppl.estimators.score_function import ScoreFunction
from ppl.site import Site


def choose(distribution: Any, site: Site) -> Estimator:
    """Reparameterize where that is right, otherwise the score function where that is; or an error."""
    if pathwise(distribution):
        return Reparameterize()
    score = ScoreFunction()
    reason = score.refuses(distribution, site)
    if reason is None:
        return score
    raise errors.EstimatorError(
        f"no unbiased gradient estimator is known for {site.name!r} ~ {site.distribution_name}: draws have no right pathwise "
        f"derivative, and {reason}.\n  {site.where}\n"
        "Use a distribution with fixed support or a pathwise derivative, or .detach() the site."
    )
