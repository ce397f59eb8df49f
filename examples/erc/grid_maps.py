"""Where a run's test representations lie, before and after training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from spcl_loss import PrototypeMemory

from .collect import Run
from .dialogues import Corpus
from .encoder import EmotionModel, load_model, load_tokenizer_and_backbone
from .evaluation import Encoded, encode
from .figures import two_dimensions
from .inputs import Sample
from .layouts import lay_out
from .run_folder import RunFolder, atomically

SHOWN = 1000  # test utterances; more hide one another


def map_of(run: Run, corpus: Corpus, cache: Path) -> dict[str, np.ndarray]:
    """Places by t-SNE and classes, from the folder `cache` if they are there: they take a CPU some time.

    Returns:
        before: (n, 2), test utterances as the untrained encoder sees them.
        after: (n + P, 2), as the best weights do, then the P prototypes.
        truth: (n,), the utterances' classes; prototypes: (P,), the prototypes' classes.
    """
    result = RunFolder(run.path).result.read_bytes()
    file = cache / f"{run.path.name}-{hashlib.sha256(result).hexdigest()[:12]}.npz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        places = _compute(run, corpus.first(run.settings.limit))

        def write(path: Path) -> None:
            with path.open("wb") as partial:  # a name would be given the ending .npz
                np.savez_compressed(partial, **places)  # type: ignore[arg-type]

        atomically(file, write)
    with np.load(file) as stored:
        return dict(stored)


def _compute(run: Run, corpus: Corpus) -> dict[str, np.ndarray]:
    settings = run.settings
    accelerator = Accelerator()  # with the precision that this process has used so far, and may not change
    tokenizer, backbone = load_tokenizer_and_backbone(settings)
    classes, learned = len(corpus.labels), settings.learns_prototypes
    model = EmotionModel(backbone, classes, head_trains_encoder=False, learns_prototypes=learned)
    samples = _sample(corpus, tokenizer, run)
    prepared = accelerator.prepare(model)

    def represent(what: str) -> Encoded:
        size, padding = settings.encoding_batch_size, tokenizer.pad_token_id or 0
        return encode(prepared, samples, accelerator, padding=padding, batch_size=size, what=what)

    before = represent("encoding test before training")
    memory = PrototypeMemory(
        len(corpus.labels), model.width, queue_size=settings.queue_size, support_size=settings.support_size
    )
    load_model(RunFolder(run.path).best, model, memory)
    after = represent("encoding test after training")
    centroids, exists = memory.centroids()
    return {
        "before": two_dimensions(before.features.cpu().numpy()),
        "after": two_dimensions(np.concatenate([after.features.cpu().numpy(), centroids[exists].numpy()])),
        "truth": after.labels.cpu().numpy(),
        "prototypes": np.flatnonzero(exists.numpy()),
    }


def _sample(corpus: Corpus, tokenizer: object, run: Run) -> list[Sample]:
    samples = lay_out(run.settings, corpus.test, tokenizer).own_queries()
    chosen = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:SHOWN]
    return [samples[i] for i in chosen.sort().values.tolist()]
