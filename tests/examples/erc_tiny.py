"""A corpus and an encoder small enough that a test can train on them in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erc.data import Corpus, Dialogue, Turn
from erc.model import packaged_minilm
from erc.settings import Settings

LABELS = ("calm", "glad", "angry")
WORDS = ("i see", "how nice", "go away")
TALK = Dialogue(
    "7",
    (
        Turn("0", "Ann", "one two three", 0),
        Turn("1", "Ben", "four five", None),
        Turn("2", "Ann", "six", 2),
        Turn("3", "Cat", "seven eight", 1),
    ),
)


def corpus(train: int = 12) -> Corpus:
    """Dialogues of four turns, whose words give the emotion away."""

    def split(first: int, count: int) -> tuple[Dialogue, ...]:
        return tuple(_dialogue(number) for number in range(first, first + count))

    return Corpus("tiny", LABELS, split(0, train), split(100, 5), split(200, 6))


def _dialogue(number: int) -> Dialogue:
    labels = [(number + i * i) % 3 for i in range(4)]
    turns = (Turn(str(i), "ab"[i % 2], f"{WORDS[label]} {number}", label) for i, label in enumerate(labels))
    return Dialogue(str(number), tuple(turns))


def tokenizer() -> Any:
    """MiniLM's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(packaged_minilm(), local_files_only=True)


def encoder(folder: Path, architecture: str = "bert") -> str:
    """A random two-layer transformer with MiniLM's tokenizer, saved as any model is."""
    import torch
    from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

    words = tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": len(words), "max_position_embeddings": 130,
        "initializer_range": 0.2,  # larger than usual: representations then differ by words before any training
    }  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes)) if architecture == "bert" else MPNetModel(MPNetConfig(**sizes))
    model.save_pretrained(folder)
    words.model_max_length = 128
    words.save_pretrained(folder)
    return str(folder)


def settings(folder: str, **changes: object) -> Settings:
    """Three quick epochs of several batches, in float32."""
    values: dict[str, object] = {
        "dataset": "tiny", "encoder": folder, "contrastive_weight": None, "curriculum": "on",
        "inputs": "prompts", "context_turns": 2,
        "max_length": 48, "epochs": 3, "batch_size": 4, "encoder_rate": 1e-3,
        "head_rate": 1e-2, "warmup": 2, "queue_size": 8, "support_size": 2, "precision": "fp32",
        "selects_by": "prototype",
    }  # fmt: skip
    return Settings(**{**values, **changes})  # type: ignore[arg-type]
