"""Another name for parts of `spcl_loss._numerics`, for those who still import it from here."""

from spcl_loss._numerics import HALF_MAGNITUDE, PLAIN_SCALE, accumulate

__all__ = ["HALF_MAGNITUDE", "PLAIN_SCALE", "accumulate"]
