"""Computes the frames of the page "Try it": python docs/tools/play.py (a minute or two; writes docs/play/frames.json).

A small encoder maps four overlapping classes to directions in the plane and is trained by one of three losses. A frame
holds, after so many steps, the directions of 80 held-out points and of the prototypes, and the recall of each class.
Angles and recalls are bytes: an angle a is round(255 * a / 360), a recall round(100 * recall), and 255 is none.
"""

from __future__ import annotations

import base64
import json
import math
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from spcl_loss import METHODS, SupervisedPrototypicalContrastiveLoss, supervised_prototypical_contrastive_loss

FILE = Path(__file__).parent.parent / "play/frames.json"
CLASSES, WIDTH, TRAIN, SHOWN, BATCH = 4, 8, 600, 20, 16
STEPS = (0, 5, 10, 20, 30, 45, 60, 80, 110, 150)
TEMPERATURES = (0.05, 0.2, 0.8)  # of the plain cosine
SUPPORTS = (1, 8, 64)
RATIOS = (1, 10, 50)  # rows of the largest class to one of the smallest
NONE = 255


def data(ratio: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training rows, their classes, held-out rows, their classes. Held out are equally many of each class."""
    generator = torch.Generator().manual_seed(0)
    means = 1.3 * torch.randn(CLASSES, WIDTH, generator=generator)
    shares = torch.tensor([ratio ** (-c / (CLASSES - 1)) for c in range(CLASSES)])
    counts = (TRAIN * shares / shares.sum()).round().long()
    labels = torch.arange(CLASSES).repeat_interleave(counts)
    shown = torch.arange(CLASSES).repeat_interleave(SHOWN)
    noise = torch.randn(TRAIN + CLASSES, WIDTH, generator=generator)[: len(labels)]
    return means[labels] + noise, labels, means[shown] + torch.randn(len(shown), WIDTH, generator=generator), shown


def angles(rows: Tensor) -> list[int]:
    return [round(255 * (math.degrees(math.atan2(y, x)) % 360) / 360) % 255 for x, y in rows.tolist()]


def run(method: str, temperature: float, support: int, ratio: int) -> str:
    """The frames of one training, as base64."""
    inputs, labels, shown, shown_labels = data(ratio)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 2))
    learned = nn.Parameter(torch.randn(CLASSES, 2)) if method == "bcl" else None
    options = {**METHODS[method], "similarity": "cosine", "temperature": temperature}
    loss_fn = SupervisedPrototypicalContrastiveLoss(CLASSES, 2, queue_size=64, support_size=support, **options)
    optimizer = torch.optim.Adam([*encoder.parameters(), *([] if learned is None else [learned])], lr=0.01)
    frames = bytearray()
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            with torch.no_grad():
                frames += bytes(frame(encoder, loss_fn, learned, method, inputs, labels, shown, shown_labels))
        batch = torch.randint(len(labels), (BATCH,))
        rows = encoder(inputs[batch])
        if method == "supcon":
            loss = supervised_prototypical_contrastive_loss(rows, labels[batch], **options)
        else:
            loss = loss_fn(rows, labels[batch], prototypes=learned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return base64.b64encode(frames).decode()


def frame(
    encoder: nn.Module,
    loss_fn: SupervisedPrototypicalContrastiveLoss,
    learned: Tensor | None,
    method: str,
    inputs: Tensor,
    labels: Tensor,
    shown: Tensor,
    shown_labels: Tensor,
) -> list[int]:
    """Angles of the points and of the prototypes that the next step will use, then recalls by the class means."""
    points = encoder(shown)
    prototypes, exists = loss_fn.memory.prototypes(advance=False)
    if learned is not None:
        prototypes, exists = learned, torch.ones(CLASSES, dtype=torch.bool)
    elif method == "supcon":
        exists = torch.zeros(CLASSES, dtype=torch.bool)
    places = [angle if there else NONE for angle, there in zip(angles(prototypes), exists.tolist(), strict=True)]
    means = SupervisedPrototypicalContrastiveLoss(CLASSES, 2)
    means.memory.initialize(encoder(inputs), labels)
    right = (means.predict(points) == shown_labels).float().view(CLASSES, SHOWN).mean(1)
    return [*angles(points), *places, *(round(100 * recall) for recall in right.tolist())]


def main() -> None:
    runs = {}
    for method, (t, temperature), (r, ratio) in product(
        ("supcon", "spcl", "bcl"), enumerate(TEMPERATURES), enumerate(RATIOS)
    ):
        for k, support in enumerate(SUPPORTS if method == "spcl" else SUPPORTS[:1]):
            runs[f"{method} {t} {k} {r}"] = run(method, temperature, support, ratio)
    about = {"classes": CLASSES, "shown": SHOWN, "steps": STEPS, "temperatures": TEMPERATURES, "supports": SUPPORTS}
    FILE.write_text(json.dumps({**about, "ratios": RATIOS, "runs": runs}, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()
