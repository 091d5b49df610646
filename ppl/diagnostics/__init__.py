"""What can be asked of a fitted family: draws, predictions, whether it worked, and pictures.

Everything here is a function of bound programs, a model conditioned on its data and a family at its parameters; the methods
of `ppl.Fit` call these.
"""
