"""Running an objective to an optimum, and what comes after."""
