"""Pictures of a fit: each takes arrays, draws with matplotlib, and returns the figure."""

from ppl.diagnostics.plots.densities import densities
from ppl.diagnostics.plots.forest import forest
from ppl.diagnostics.plots.loss import loss
from ppl.diagnostics.plots.pairs import pairs

__all__ = ["densities", "forest", "loss", "pairs"]
