"""vLLM's public shapes, and an engine behind them that is transformers, a request at a time.

For tests of what is written against vLLM where it is not installed. The engine serves text alone:
what vLLM makes of images only vLLM can show.
"""

import enum
import sys
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType, SimpleNamespace

import torch
from transformers import AutoModelForImageTextToText

_OURS = ("serendip.planning.vllm_processor", "serendip.planning.vllm_planner")


class MoveDirectionality(enum.Enum):
    UNIDIRECTIONAL = enum.auto()
    SWAP = enum.auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: list  # of indices
    added: list  # of (index, sampling parameters, prompt tokens, live output tokens)
    moved: list  # of (from, to, direction)


class StandIn(ABC):
    @classmethod
    def validate_params(cls, sampling_params):
        return None

    @abstractmethod
    def __init__(self, vllm_config, device, is_pin_memory): ...

    @abstractmethod
    def apply(self, logits): ...

    @abstractmethod
    def is_argmax_invariant(self): ...

    @abstractmethod
    def update_state(self, batch_update): ...


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    stop_token_ids: list
    detokenize: bool
    logprobs: int | None = None
    extra_args: dict | None = None
    all_stop_token_ids: set = field(init=False)

    def __post_init__(self):
        assert self.temperature == 0
        self.all_stop_token_ids = set(self.stop_token_ids)


class LLM:
    """Greedy generation under one logits processor, with the log-probabilities after it."""

    def __init__(self, model, *, logits_processors, logprobs_mode, dtype, **_):
        assert logprobs_mode == "processed_logprobs"
        self.model = AutoModelForImageTextToText.from_pretrained(model).eval()
        assert dtype == str(self.model.dtype).removeprefix("torch.")
        module, _, name = logits_processors[0].partition(":")
        self.processor = getattr(import_module(module), name)
        self.asked = []  # how many requests came together

    @torch.inference_mode()
    def generate(self, prompts, params, use_tqdm):
        self.asked.append(len(prompts))
        for each in params:
            self.processor.validate_params(each)
        processor = self.processor(None, torch.device("cpu"), False)
        return [self._generate(processor, *row) for row in zip(prompts, params, strict=True)]

    def _generate(self, processor, prompt, params):
        assert set(prompt) == {"prompt_token_ids"}
        written, shown = [], []
        before = prompt["prompt_token_ids"]
        processor.update_state(BatchUpdate(1, [], [(0, params, before, written)], []))
        while len(written) < params.max_tokens:
            ids = torch.tensor([[*before, *written]])
            logits = processor.apply(self.model(input_ids=ids).logits[:, -1].float())
            after = logits.log_softmax(-1)[0]
            top = after.topk(params.logprobs or 1)
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            shown.append({token: SimpleNamespace(logprob=value) for token, value in pairs})
            written.append(int(after.argmax()))
            if written[-1] in params.stop_token_ids:
                break
        answer = SimpleNamespace(token_ids=written, logprobs=shown if params.logprobs else None)
        return SimpleNamespace(outputs=[answer])


@contextmanager
def installed(monkeypatch):
    """Modules that stand in for vllm, and ours imported anew on top of them."""
    top = ModuleType("vllm")
    top.LLM, top.SamplingParams = LLM, SamplingParams
    interface = ModuleType("vllm.v1.sample.logits_processor")
    interface.LogitsProcessor = StandIn
    interface.BatchUpdate = BatchUpdate
    interface.MoveDirectionality = MoveDirectionality
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: True)
    for module in (top, platforms, ModuleType("vllm.v1"), ModuleType("vllm.v1.sample"), interface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in _OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in _OURS:
        sys.modules.pop(name, None)
