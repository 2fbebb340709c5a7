"""The Planner on vLLM: the same prompts, the same search, the same scores.

vLLM writes the reasoning, greedily, with the trie's logits processor beside it, which forces the
answer to be opened. The k clusters are then found by our beam (asked_beam.py): each round asks
vLLM for the next token of every open prefix, under the processor and without a view, so that its
processed log-probabilities are those of the renormalised score. (vLLM's own beam search takes no
processor; samples would have to be many before eight of them differ.) A round reads prompts from
vLLM's cache of prefixes. What is not the engine's: an end of turn before the answer is opened is
never written, where our engine opens the answer there.

One engine a worker, inside its process and on one device; importable only where vLLM is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from serendip.artifacts import Artifact
from serendip.config import PlansConfig
from serendip.core import InvalidRequest, SerendipError
from serendip.planning import vllm_processor
from serendip.planning.asked_beam import Prefix, beam
from serendip.planning.decode import Decoded
from serendip.planning.mllm import Mllm
from serendip.planning.planner import Planner, check_tree
from serendip.planning.prompt import Content, Prompt
from serendip.planning.search import Search
from serendip.planning.style import ANSWER
from serendip.planning.views import View
from serendip.planning.vllm_checkpoint import checkpoint_for_vllm
from serendip.progress import timed
from serendip.tree.cluster_tree import Nodes

_PROCESSOR = "serendip.planning.vllm_processor:VllmTrieProcessor"
_GB = 10**9
# Tokens of a block of vLLM's cache, of which only whole ones are found again. Its CPU backend takes
# multiples of 32, and 128 if it is not told, which is more than a short prompt.
_CPU_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class VllmPlanner(Planner):
    """A planner whose checkpoint vLLM runs.

    Attributes:
        mllm: the checkpoint without its weights.
        llm: vllm.LLM.
    """

    llm: Any

    @classmethod
    def open(
        cls, artifact: Artifact, nodes: Nodes, search: PlansConfig, *, threads: int = 1
    ) -> VllmPlanner:
        """Starts vLLM on a planner artefact.

        Args:
            threads: of vLLM on a CPU.

        Raises:
            CorruptArtifact: it was trained for another tree, or its files do not fit.
            SerendipError: vLLM does not start: what it says of it.
        """
        check_tree(artifact, nodes)
        checkpoint = checkpoint_for_vllm(artifact)
        mllm = Mllm.open_words(checkpoint)
        parts = cls._parts(artifact, mllm, nodes, search)
        os.environ[vllm_processor.FOLDER] = str(artifact.path / "trie")
        os.environ[vllm_processor.TOKENIZER] = mllm.tokenizer_hash
        style = parts["style"]
        images = style.thumbnail + parts["config"].frames * style.frames
        return cls(**parts, llm=_start(checkpoint, search, threads, images))

    def check(self) -> None:
        """vLLM has read the checkpoint when it has started."""

    def write_free(
        self, contents: Sequence[Content], own_nodes: Sequence[int | None]
    ) -> list[tuple[str, str]]:
        """Not on this engine: raises InvalidRequest."""
        raise InvalidRequest(
            "plans, and writes no text of its own",
            field="plans.engine",
            value="vllm",
            remedy="Evaluate with plans.engine = 'serendip'.",
        )

    def _search(
        self, prompts: Sequence[Prompt], views: Sequence[View], how: Search
    ) -> list[Decoded]:
        with timed(self.seconds, "encode"):
            given = [self._given(prompt) for prompt in prompts]
        texts: list[list[int]] = [[] for _ in prompts]
        if self.style.reasons:
            with timed(self.seconds, "reasoning"):
                texts = self._reason(given)
            opening = self.mllm.tokens(ANSWER)
            given = [_then(g, [*t, *opening]) for g, t in zip(given, texts, strict=True)]

        def ask(prefixes: Sequence[Prefix]) -> list[Mapping[int, float]]:
            return self._ask(given, prefixes)

        with timed(self.seconds, "answer"):
            outcomes = beam(self.trie, views, how.k, how.beams, ask)
        return [Decoded(text, outcome) for text, outcome in zip(texts, outcomes, strict=True)]

    def _given(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt as vLLM takes it, which puts in what an image takes of tokens by itself."""
        text = self.mllm.prompt_text(prompt)
        given: dict[str, Any] = {"prompt_token_ids": self.mllm.tokens(text)}
        if prompt.images:
            given["multi_modal_data"] = {"image": [Image.fromarray(i) for i in prompt.images]}
            # Or vLLM would hash them with every question.
            names = [
                sha256(repr(i.shape).encode() + i.tobytes()).hexdigest() for i in prompt.images
            ]
            given["multi_modal_uuids"] = {"image": names}
        return given

    def _reason(self, prompts: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """The free text of each prompt, without the answer's opening."""
        opening = self.mllm.tokens(ANSWER)
        bound = self.search.max_reasoning_tokens
        wanted = {
            "serendip_trie": True,
            "serendip_answer": False,
            "serendip_opening": opening,
            "serendip_max_free": bound,
        }
        settings = [{"extra_args": wanted}] * len(prompts)
        written = self._generate(prompts, settings, bound + len(opening) + 1)
        texts = []
        for out in written:
            tokens = [t for t in out.token_ids if t not in self.mllm.end_tokens]
            if tokens[len(tokens) - len(opening) :] != opening:
                raise SerendipError(
                    "has not opened its answer: the logits processor did not take part",
                    field="plans.engine",
                    value="vllm",
                    remedy="Use a release of vLLM that runs custom logits processors.",
                )
            texts.append(tokens[: len(tokens) - len(opening)])
        return texts

    def _ask(
        self, prompts: Sequence[Mapping[str, Any]], prefixes: Sequence[Prefix]
    ) -> list[Mapping[int, float]]:
        asked = [_then(prompts[p.prompt], p.tokens) for p in prefixes]
        settings = [
            {
                "logprobs": p.most,
                "extra_args": {"serendip_trie": True, "serendip_begun": list(p.tokens)},
            }
            for p in prefixes
        ]
        return [
            {token: found.logprob for token, found in out.logprobs[0].items()}
            for out in self._generate(asked, settings, 1)
        ]

    def _generate(
        self, prompts: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]], most: int
    ) -> list[Any]:
        from vllm import SamplingParams

        ends = sorted(self.mllm.end_tokens)
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=most, stop_token_ids=ends, detokenize=False, **each
            )
            for each in settings
        ]
        answers = self.llm.generate(list(prompts), params, use_tqdm=False)
        return [answer.outputs[0] for answer in answers]


def _then(prompt: Mapping[str, Any], tokens: Sequence[int]) -> dict[str, Any]:
    return {**prompt, "prompt_token_ids": [*prompt["prompt_token_ids"], *tokens]}


def _start(checkpoint: Path, search: PlansConfig, threads: int, images: int) -> Any:
    """A vllm.LLM, inside this process, whose log-probabilities are the processors'."""
    for name, value in {
        # The worker's end is then the engine's: nothing is left behind by a kill.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.platforms import current_platform

    given = search.vllm
    dtype: str = given.dtype
    if dtype == "checkpoint":
        config = json.loads((checkpoint / "config.json").read_text())
        dtype = config.get("dtype") or config.get("torch_dtype") or "auto"
    options: dict[str, Any] = {}
    if current_platform.is_cpu():
        options["block_size"] = _CPU_BLOCK
    if given.cache_gb:
        options["kv_cache_memory_bytes"] = int(given.cache_gb * _GB)
    if given.max_tokens:
        options["max_model_len"] = given.max_tokens
    try:
        return LLM(
            str(checkpoint),
            dtype=dtype,
            load_format="safetensors",
            gpu_memory_utilization=given.memory,
            enforce_eager=given.eager,
            enable_prefix_caching=True,
            limit_mm_per_prompt={"image": images},
            logits_processors=[_PROCESSOR],
            logprobs_mode="processed_logprobs",
            max_logprobs=-1,
            generation_config="vllm",
            seed=0,
            **options,
        )
    except (RuntimeError, ValueError, OSError, ImportError, AssertionError) as e:
        raise SerendipError(
            f"vLLM does not start ({(str(e).splitlines() or [type(e).__name__])[0]})",
            field="plans.engine",
            value="vllm",
            remedy="See plans.vllm in serendip/config.py; or plan with plans.engine = 'serendip'.",
        ) from e
