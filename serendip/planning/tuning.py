"""What of a checkpoint is trained: every weight, or low-rank additions to its language model.

LoRA is peft's; it goes into the model in place and is merged at the end, so that what is saved is
an ordinary checkpoint. Knows no loss and no data.
"""

from __future__ import annotations

from typing import Any

import torch

from serendip.config import LoraConfig, PlannerConfig
from serendip.core import InvalidRequest
from serendip.planning.mllm import Mllm

EMBEDDED = "embedded"
# What the architectures call the part between vision tower and language model.
_PROJECTORS = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")


class Tuning:
    """A model made ready for training, until ``finish``.

    Attributes:
        kind: "full" or "lora".
        bfloat16: whether the passes are to run in it.
    """

    def __init__(self, mllm: Mllm, config: PlannerConfig, seed: int) -> None:
        """Takes a model as ``dtype_of`` says, on the device that it is to be trained on.

        Raises:
            InvalidRequest: ``planner.lora`` names layers that the language model does not have,
                or a projector where none is known; the architecture cannot compute its
                activations again.
        """
        self.kind = kind_of(config)
        self.bfloat16 = is_bfloat16(config)
        self._mllm = mllm
        self._recomputes = config.gradient_checkpointing
        self._adapted: Any = None
        self._dtype = mllm.model.dtype
        self._projector: list[torch.nn.Parameter] = []
        if config.gradient_checkpointing:
            _checkpoint_activations(mllm.model)
        if self.kind == "lora":
            self._adapt(config.lora, seed)

    def _adapt(self, lora: LoraConfig, seed: int) -> None:
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model

        model = self._mllm.model
        # A full name matches itself alone.
        targets = "|".join(name.replace(".", r"\.") for name in _targets(model, lora.targets))
        about = PeftConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._adapted = get_peft_model(model, about)
        if lora.projector:
            self._projector = _projector(model)
            for parameter in self._projector:
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()

    def finish(self) -> None:
        """Merges what was learnt into the weights; the model is an ordinary one again."""
        model = self._mllm.model
        if self._adapted is not None:
            self._adapted.merge_and_unload()
            self._adapted = None
        for parameter in self._projector:
            parameter.data = parameter.data.to(self._dtype)
        if self._recomputes:
            _verb(model, "disable")()
        model.to("cpu").eval()


def kind_of(config: PlannerConfig) -> str:
    """ "full" or "lora", whichever ``planner.tuning`` means for the checkpoint."""
    if config.tuning != "auto":
        return config.tuning
    return "full" if config.checkpoint == EMBEDDED else "lora"


def device_of() -> torch.device:
    """Where training happens: on a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def muon_lr_of(config: PlannerConfig) -> float:
    """The learning rate of the matrices under Muon; 0 where AdamW trains them."""
    wanted = config.optimizer
    if wanted == "auto":
        wanted = "muon" if config.checkpoint == EMBEDDED else "adamw"
    return config.muon_lr if wanted == "muon" else 0.0


def is_bfloat16(config: PlannerConfig) -> bool:
    """Whether ``planner.precision`` means bfloat16 on this machine."""
    if config.precision == "auto":
        return config.checkpoint != EMBEDDED and device_of().type == "cuda"
    return config.precision == "bfloat16"


def dtype_of(config: PlannerConfig) -> torch.dtype:
    """What a checkpoint's weights are opened in; trained ones are float32 in any case."""
    frozen = kind_of(config) == "lora"
    return torch.bfloat16 if frozen and is_bfloat16(config) else torch.float32


def _checkpoint_activations(model: Any) -> None:
    try:
        _verb(model, "enable")({"use_reentrant": False})
    except ValueError as e:
        raise InvalidRequest(
            "this architecture cannot compute its activations again",
            field="planner.gradient_checkpointing",
            value=type(model).__name__,
            remedy="Set it to false, and planner.accumulate higher.",
        ) from e


def _verb(model: Any, verb: str) -> Any:
    """A method of transformers that goes by another name from 5.23 on."""
    new = getattr(model, f"activation_checkpointing_{verb}", None)
    return new or getattr(model, f"gradient_checkpointing_{verb}")


def _targets(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """Full names of the language model's linear layers, of those names' ends that are wanted."""
    inside = {id(m) for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    ends = {name.rpartition(".")[2] for name in names}
    if unknown := sorted(set(wanted) - ends):
        raise InvalidRequest(
            "the language model has no linear layer of this name",
            field="planner.lora.targets",
            value=unknown[0],
            remedy=f"Name some of {', '.join(sorted(ends))}, or none for all.",
        )
    return [n for n in names if not wanted or n.rpartition(".")[2] in wanted]


def _projector(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    found = [
        parameter
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _PROJECTORS
        for parameter in module.parameters()
    ]
    if not found:
        raise InvalidRequest(
            "this architecture's projector is not known",
            field="planner.lora.projector",
            value=type(model).__name__,
            remedy="Set it to false.",
        )
    return found
