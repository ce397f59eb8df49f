"""What a user's type checker sees. `make check` runs mypy --strict over this file; nothing imports it.

A line with `type: ignore[...]` must be refused: mypy also reports an `ignore` that nothing needs.
"""

import torch
from torch import Tensor
from typing_extensions import assert_type

from spcl_loss import (
    METHODS,
    DifficultyCurriculumSampler,
    PrototypeMemory,
    SupervisedPrototypicalContrastiveLoss,
    prototype_difficulty,
    supervised_prototypical_contrastive_loss,
)

x, y = torch.randn(4, 8), torch.arange(4) % 2

loss_fn = SupervisedPrototypicalContrastiveLoss(2, 8, similarity="cosine", positives="outside")
assert_type(loss_fn(x, y), Tensor)
assert_type(loss_fn.forward(x, y, update_memory=False), Tensor)
assert_type(loss_fn.predict(x), Tensor)
assert_type(loss_fn.memory, PrototypeMemory)
assert_type(loss_fn.memory.prototypes(), tuple[Tensor, Tensor])
assert_type(loss_fn.temperature, float)

SupervisedPrototypicalContrastiveLoss(2, 8, similarity="cosin")  # type: ignore[arg-type]
SupervisedPrototypicalContrastiveLoss(2, 8, contrast="positives")  # type: ignore[arg-type]
SupervisedPrototypicalContrastiveLoss(2, 8, temprature=0.1)  # type: ignore[call-arg]
loss_fn(x)  # type: ignore[call-arg]
loss_fn.similarity = "cosin"  # type: ignore[assignment]

assert_type(supervised_prototypical_contrastive_loss(x, y, reduction="none"), Tensor)
supervised_prototypical_contrastive_loss(x, y, reduction="avg")  # type: ignore[arg-type]
supervised_prototypical_contrastive_loss(x, y, impl="cuda")  # type: ignore[arg-type]
supervised_prototypical_contrastive_loss(x, y, **METHODS["spcl"])

difficulty = prototype_difficulty(x, y)
assert_type(difficulty, Tensor)
for index in DifficultyCurriculumSampler(difficulty, num_epochs=2, draw="fixed"):
    assert_type(index, int)
DifficultyCurriculumSampler(difficulty, num_epochs=2, draw="coin")  # type: ignore[arg-type]
