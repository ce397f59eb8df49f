"""Test weighted-F1, in percent, that others report, with where they do. None of it was measured here."""

from __future__ import annotations

from dataclasses import dataclass

from .data import EMORYNLP, IEMOCAP

PAPER = "Song et al., EMNLP 2022 (arXiv 2210.08713)"
EACL = "Yu et al., Findings of NAACL 2024 (arXiv 2403.20289), results table"
EMOBERTA = "Kim and Vossen 2021 (arXiv 2108.12009), README of tae898/erc, mean of five seeds"
LARGE, SIMCSE_LARGE = "RoBERTa-large", "SimCSE-RoBERTa-large"


@dataclass(frozen=True)
class Quote:
    """A number on a dataset, and whose it is."""

    method: str
    encoder: str
    weighted_f1: float
    source: str


# The full EmoryNLP only: nobody's number on it compares with the reduced release, nor the other way round.
QUOTES: dict[str, tuple[Quote, ...]] = {
    "MELD": (
        Quote("SPCL with curriculum, the paper", SIMCSE_LARGE, 67.25, PAPER),
        Quote("SPCL with curriculum, re-run by others", SIMCSE_LARGE, 65.74, EACL),
        Quote("SupCon, run by others", SIMCSE_LARGE, 65.63, EACL),
        Quote("EACL, its authors", SIMCSE_LARGE, 67.12, EACL),
        Quote("EmoBERTa, past turns only", LARGE, 64.55, EMOBERTA),
    ),
    IEMOCAP: (
        Quote("SPCL with curriculum, the paper", SIMCSE_LARGE, 69.74, PAPER),
        Quote("SPCL with curriculum, re-run by others", SIMCSE_LARGE, 67.19, EACL),
        Quote("SupCon, run by others", SIMCSE_LARGE, 68.14, EACL),
        Quote("EACL, its authors", SIMCSE_LARGE, 70.41, EACL),
        Quote("EmoBERTa, past turns only", LARGE, 68.57, EMOBERTA),
    ),
    EMORYNLP: (
        Quote("SPCL with curriculum, the paper", SIMCSE_LARGE, 40.94, PAPER),
        Quote("SPCL with curriculum, re-run by others", SIMCSE_LARGE, 39.52, EACL),
        Quote("SupCon, run by others", SIMCSE_LARGE, 39.28, EACL),
        Quote("EACL, its authors", SIMCSE_LARGE, 40.24, EACL),
    ),
}
