"""Similarities of all pairs of rows, reduced to a few numbers a row."""

from spcl_loss._similarity.contrast import Contrast, Statistics
from spcl_loss._similarity.operator import contrast_statistics, uses_dense
from spcl_loss._similarity.sharded import divide, sharded_statistics

__all__ = [
    "Contrast", "Statistics", "contrast_statistics", "divide", "sharded_statistics", "uses_dense",
]  # fmt: skip
