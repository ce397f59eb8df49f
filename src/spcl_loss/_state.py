"""Modules that can be made anew where a framework has lost their buffers, and that refuse misspelt settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Restorable(nn.Module):
    """A module that `reset_parameters` makes new.

    It initialises buffers that were created on the meta device and never given values. `to_empty` and Hugging Face's
    `from_pretrained` give those uninitialised memory, unless the checkpoint holds them.
    """

    _built_on_meta = False
    _settings: ClassVar[tuple[str, ...]] = ()  # the names that users may set

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name.startswith("_") or name in self._settings or hasattr(self, name)):
            # A new attribute that was surely meant to be a setting. Other names are the user's own business.
            near = difflib.get_close_matches(name, self._settings, n=1, cutoff=0.85)
            if near and f"_{near[0]}_" not in f"_{name}_":  # base_temperature is another name
                raise AttributeError(f"{type(self).__name__} has no setting {name}. Did you mean {near[0]}?")
        super().__setattr__(name, value)

    def _restore_buffers(self) -> None:
        """Gives the module's own buffers the values that the constructor gives them."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Restores all state that the constructor sets, seeds included. Frameworks call it by this name."""
        for module in self.modules():
            if isinstance(module, Restorable):
                module._restore_buffers()

    def _has_meta_buffers(self) -> bool:
        return any(buffer.is_meta for buffer in self.buffers())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Every move and conversion ends here: `to`, `half`, `to_empty`."""
        had_no_values = self._has_meta_buffers()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if had_no_values and not self._has_meta_buffers():
            self._fill()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        own = self.named_buffers(recurse=False)
        if all(prefix + name in state_dict and not buffer.is_meta for name, buffer in own):
            self._built_on_meta = False  # all values are loaded: nothing is left to fill

    @property
    def _is_hf_initialized(self) -> bool:
        """Hugging Face reads this after loading: the last moment to fill what the checkpoint did not hold."""
        if self._built_on_meta and not self._has_meta_buffers():
            self._fill()
        return True

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        self._built_on_meta = self._built_on_meta and not value

    @torch.no_grad()
    def _fill(self) -> None:
        """Fills the buffers; those that Hugging Face has marked as loaded keep their values."""
        self._built_on_meta = False
        own = dict(self.named_buffers(recurse=False))
        loaded = {name: buffer.clone() for name, buffer in own.items() if getattr(buffer, "_is_hf_initialized", False)}
        if len(loaded) < len(own):
            self._restore_buffers()
            for name, value in loaded.items():
                own[name].copy_(value)
