"""Pictures of fits, flows and samplers: each draws with matplotlib, and returns the figure."""

from ppl.diagnostics.plots.densities import densities
from ppl.diagnostics.plots.forest import forest
from ppl.diagnostics.plots.loss import loss
from ppl.diagnostics.plots.pairs import pairs
from ppl.diagnostics.plots.plane import density, field, trajectories

__all__ = ["densities", "density", "field", "forest", "loss", "pairs", "trajectories"]
