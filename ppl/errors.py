"""Every error `ppl` raises on purpose, each with its own type.

A message names the address, the user's source line where there is one, what was found, and what to do instead.
"""

from __future__ import annotations

from typing import Any


class PPLError(Exception):
    """Base class of all errors raised by `ppl`."""


class DuplicateAddressError(PPLError):
    """Two sites of one program share an address, or one address lies inside another."""


class MissingAddressError(PPLError):
    """A trace lacks a value that the program needs."""


class UnknownAddressError(PPLError):
    """A trace or a method of a bound program names an address that the program does not have."""


class ValueShapeError(PPLError):
    """A value given for an address has another shape than its distribution."""


class ValueDtypeError(PPLError):
    """A value given for an address has a dtype that its distribution cannot take."""


class ObservationShapeError(ValueShapeError):
    """An observation has another shape than its distribution. Nothing is broadcast silently."""


class SupportError(PPLError):
    """A value lies outside the support of its distribution."""


class OutsideProgramError(PPLError):
    """`ppl.sample` (or `factor`, `deterministic`) was executed outside of any program."""


class UntransformedSiteError(PPLError):
    """A function with random choices in it was compiled without a transformation to say what they mean."""


class DifferentiationError(PPLError):
    """Plain automatic differentiation reached a random choice. `ppl.expectation` differentiates those."""


class ModelFamilyMismatchError(PPLError):
    """A model and a variational family disagree on their latent variables or on the supports of these."""


class UnsupportedPrimitiveError(PPLError):
    """A JAX primitive holds a site in its body, and no transformation knows what that means."""


class WhileLoopDensityError(PPLError):
    """A density was asked for of a site in a `while_loop`, whose number of iterations is unknown."""


class NoSamplerError(PPLError):
    """A distribution or program has a density and no sampler."""


class EstimatorError(PPLError):
    """A gradient estimator cannot serve the distribution or the construct it was asked to serve."""


class ObjectiveError(PPLError):
    """An objective does not return one real number, or states a density where only a value makes sense."""


class DensityKindError(PPLError):
    """An estimated density is used where only another kind of density is right, or asked for something that it is not."""


class MarginalError(PPLError):
    """The variables to integrate cannot be integrated in the way that was asked for."""


class FitError(PPLError):
    """Something is asked of a fit that it was not told enough for, or that its family cannot give."""


class SavedFileError(PPLError):
    """A file is no saved fit, is damaged, or does not have the structure that is asked for."""


class UnreliableWarning(UserWarning):
    """A number or a draw is handed out that should not be trusted."""


class MissingParameterError(PPLError):
    """A NumPyro `param` statement got no value."""


class NumPyroError(PPLError):
    """A NumPyro model uses a feature that has no right translation."""


class BiasError(PPLError, AssertionError):
    """Estimates differ from the exact value by more than chance allows."""


class NoExactValueError(PPLError):
    """The exact value of an objective can be found neither by enumeration nor by quadrature."""


class LanguageError(PPLError):
    """A text in the language of `.vi` files is wrong. `diagnostics` are all that was found, in the order of the text.

    Each has `file`, `line`, `column`, `message`, `hint` and `source_line`, and prints as a compiler would print it.
    """

    def __init__(self, diagnostics: tuple[Any, ...], more: int = 0):
        self.diagnostics, self.more = diagnostics, more
        rest = f"\n\nand {more} more" if more > 0 else ""
        super().__init__("\n\n".join(map(str, diagnostics)) + rest)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.diagnostics, self.more)


class FamilyError(PPLError):
    """A variational family cannot be made of a model in the way that was asked for."""


class NonFiniteError(ObjectiveError):
    """A value or a gradient was not finite while an objective was optimized.

    `fit` is the run up to the last good step, `step` the step that failed, `address` the site that is to blame and `leaves`
    the names of the parameters whose gradients are not finite (None and empty where these could not be found).
    """

    def __init__(self, message: str, fit: object, step: int, address: str | None, leaves: tuple[str, ...]):
        super().__init__(message)
        self.fit, self.step, self.address, self.leaves = fit, step, address, leaves


class ConstraintError(PPLError):
    """Constraints do not fit the parameters, or a parameter starts outside of its constraint."""


class DataError(PPLError):
    """Data are missing, ended, or are not of the shape that they should have."""


class CheckpointError(PPLError):
    """A checkpoint is damaged, or belongs to another run."""
