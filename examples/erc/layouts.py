"""How a run lays dialogues out for its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .dialogues import Dialogue
from .prompts import Prompts
from .settings import Settings
from .windows import Windows


def lay_out(settings: Settings, dialogues: Sequence[Dialogue], tokenizer: Any) -> Prompts | Windows:
    """The dialogues' inputs and samples, as the settings have them."""
    size = {"context_turns": settings.context_turns, "max_length": settings.max_length}
    if settings.inputs == "dialogues":
        return Windows(dialogues, tokenizer, **size)
    return Prompts(dialogues, tokenizer, **size, repeat_turn=settings.repeat_turn, future_turns=settings.future_turns)
