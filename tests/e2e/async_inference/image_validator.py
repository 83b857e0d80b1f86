"""The picture checks of `stress.image_validator`."""

from stress.image_validator import ImageValidator, ValidationResult

__all__ = ["ImageValidator", "ValidationResult"]
