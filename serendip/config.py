"""One TOML sets everything; what it leaves out has the value below, which is ``tiny``.

``--config tiny`` is these defaults: the synthetic world in its small size. A file overrides
single keys; a key that does not exist is an error, not a silent drop. This module knows what
can be set, not what is done with it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from serendip.core import InvalidRequest


class Section(BaseModel):
    """Settings of one room: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SynthConfig(Section):
    """The synthetic world (``serendip synth``). DESIGN's planted structure, in numbers."""

    items_per_topic: int = Field(36, ge=8, le=10_000)
    users: int = Field(2000, ge=10)
    interactions: int = Field(300_000, ge=1000)
    # "named": the second theme names the sibling topic that delights. "shift", the harder world:
    # it says how far from the own topic that one is, and fewer pictures show it. "null": it
    # predicts nothing, which is what a claim is checked against.
    second_theme: Literal["named", "shift", "null"] = "named"
    captions: int = Field(4000, ge=100)
    days: int = Field(60, ge=1)


class TreeConfig(Section):
    """The 4-level tree (``serendip tree``)."""

    branching: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (2, 2, 4, 4)
    # "text": TF-IDF and SVD of title and text. "column": the float list column `vector` of
    # items.parquet. "encoder": title and text by the sentence-transformers folder `encoder`.
    vectors: Literal["text", "column", "encoder"] = "text"
    encoder: str = ""
    encoder_batch: int = Field(64, ge=1)
    dimensions: int = Field(96, ge=2, le=4096)
    min_df: int = Field(2, ge=1)
    # Words in more than this share of the items carry no interest.
    max_df: float = Field(0.5, gt=0, le=1)
    # A cluster's weight may pass its equal share of its parent's by this factor; a leaf's share of
    # the whole, then, by (1 + tolerance)^4: 0.02 keeps leaves within a tenth.
    tolerance: float = Field(0.15, gt=0)
    # Balance on alpha x traffic + (1 - alpha) x count.
    balance_alpha: float = Field(0.0, ge=0, le=1)
    # No item's traffic counts for more than this part of a leaf's equal share.
    balance_clip: float = Field(0.25, gt=0)
    restarts: int = Field(8, ge=1)
    # Distinctive words in a description, besides its parent's word.
    words: int = Field(2, ge=1, le=6)
    # "words": distinctive words. "table": the parquet or CSV file `descriptions_path`. "llm": the
    # answers of the text-generation checkpoint in the folder `llm`.
    descriptions: Literal["words", "table", "llm"] = "words"
    descriptions_path: str = ""
    llm: str = ""
    llm_batch: int = Field(16, ge=1)
    # A tree grows with its catalogue until one of these is passed (tree/grow.py: Drift), and is
    # then rebuilt: the share of items placed since it was built, how much worse they fit, and
    # how much heavier the heaviest leaf has become.
    grow_share: float = Field(0.3, ge=0, le=1)
    grow_cosine_loss: float = Field(0.15, ge=0)
    grow_imbalance: float = Field(1.5, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> TreeConfig:
        needs = {
            "encoder": self.vectors == "encoder",
            "descriptions_path": self.descriptions == "table",
            "llm": self.descriptions == "llm",
        }
        for name, needed in needs.items():
            if needed and not getattr(self, name):
                raise ValueError(f"tree.{name} must be named")
        return self


class CurationConfig(Section):
    """The training pairs (``serendip curate``)."""

    session_gap_s: int = Field(1800, ge=1)
    min_support: float = Field(1.0, gt=0)
    # Observations' worth of the prior mean that a mean satisfaction is shrunk by.
    shrinkage: float = Field(5.0, ge=0)
    # 10 in the paper, whose model comes pretrained; the embedded one starts from nothing and
    # needs more examples of every cluster.
    contexts_per_cluster: int = Field(20, ge=1)
    held_out_share: float = Field(0.15, gt=0, lt=1)
    # Which share of that size is held out: 0 is the first. No two folds have an item in common.
    held_out_fold: int = Field(0, ge=0)
    # Two sets of equal timestamps with more pairs than this say nothing of what followed what.
    max_tied_pairs: int = Field(10_000, ge=1)
    # What follows changes how a result is computed, never its values.
    # "duckdb": one machine. "spark": the extra `spark`; SPARK_MASTER, or this machine's cores.
    engine: Literal["duckdb", "spark"] = "duckdb"
    memory_limit: str = Field("2GB", pattern=r"^[1-9][0-9]*(MB|GB)$")
    # 0: as many as there are cores.
    threads: int = Field(0, ge=0)
    # Where what does not fit in memory is spilled; empty: inside the artefact in the making.
    temp_dir: str = ""

    @model_validator(mode="after")
    def _fold_exists(self) -> CurationConfig:
        if (self.held_out_fold + 1) * self.held_out_share > 1:
            raise ValueError("held_out_fold + 1 shares of held_out_share must be at most all items")
        return self

    def recipe(self) -> dict[str, Any]:
        """The settings that a result depends on."""
        return self.model_dump(exclude={"engine", "memory_limit", "threads", "temp_dir"})


class LoraConfig(Section):
    """Low-rank adaptation of a real checkpoint (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1)
    # What is learnt is added times alpha / rank.
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    # Linear layers of the language model by their names' ends (q_proj, ...); empty: all of them.
    targets: tuple[str, ...] = ()
    # Whether what lies between vision tower and language model is trained as well, whole.
    projector: bool = False


class PlannerConfig(Section):
    """The MLLM and its fine-tuning (``serendip finetune``)."""

    # A checkpoint folder or hub name; "embedded": a tiny Gemma 3 built here.
    checkpoint: str = "embedded"
    # How an item is put to the model (planning/prompts): "video_cot": pictures and words, reasoning
    # first. "video_text": the same without. "video": pictures alone. "text": words alone, reasoning
    # first. "cluster": the description of the own cluster. Or the path of a template of your own.
    style: str = Field("video_cot", pattern=r"^(video_cot|video_text|video|text|cluster|.+\.txt)$")
    frames: int = Field(2, ge=0, le=16)
    text_chars: int = Field(400, ge=0)
    vocabulary: int = Field(1536, ge=300)
    # On captions alone, where the catalogue brings some.
    pretrain_steps: int = Field(120, ge=0)
    pretrain_lr: float = Field(2e-3, gt=0)
    steps: int = Field(480, ge=1)
    lr: float = Field(1.5e-3, gt=0)
    batch_size: int = Field(8, ge=1)
    # Rows beside each batch of pairs, for the embedded checkpoint alone, which starts from nothing
    # (planning/batches.py): words with their own cluster, and reasonings with their answer.
    word_rows: int = Field(24, ge=0)
    reasoning_rows: int = Field(32, ge=0)
    # "muon": matrices by Muon at `muon_lr`, the rest by AdamW at `lr`. "auto": muon for the
    # embedded checkpoint, else adamw.
    optimizer: Literal["auto", "adamw", "muon"] = "auto"
    muon_lr: float = Field(4e-3, gt=0)
    # "full": every weight is trained. "lora": the language model by `lora`, merged at the end; the
    # vision tower stays as it is. "auto": full for the embedded checkpoint, lora for any other.
    tuning: Literal["auto", "full", "lora"] = "auto"
    lora: LoraConfig = LoraConfig()
    # Micro-batches that a batch goes through the model in: memory for time, the same gradient.
    accumulate: int = Field(1, ge=1)
    # Activations are computed again instead of kept: memory for time, the same gradient.
    gradient_checkpointing: bool = False
    # "bfloat16": passes, and weights that are not trained; what is trained stays float32. "auto":
    # bfloat16 for any but the embedded checkpoint on a GPU, else float32.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # Share of title words left out while training, so that the title alone is not enough.
    word_dropout: float = Field(0.15, ge=0, lt=1)
    # Share of description-only rows in fine-tuning.
    description_rows: float = Field(0.1, ge=0, lt=1)
    # Who writes the reasoning traces (docs/mllm.md): "": the embedded model itself. The folder or
    # hub name of an image-text checkpoint, or the http(s):// address of an OpenAI-compatible
    # server; [teacher] says how it is asked.
    teacher: str = ""
    # A longer trace ends with an earlier sentence. Topic and trace must fit in
    # plans.max_reasoning_tokens.
    trace_tokens: int = Field(32, ge=4)
    # A training row goes whose item looks like a held-out one: at most so many of the 64 bits of
    # the thumbnails' hashes differ (catalog/look_alikes.py). -1: none is looked for.
    near_duplicate_bits: int = Field(3, ge=-1, le=16)
    # Optimizer steps between two looks at the validation items, of which the best checkpoint is
    # kept; 0: at the end alone.
    log_every: int = Field(120, ge=0)
    # Looks without a better one after which training ends; 0: never.
    patience: int = Field(0, ge=0)
    # More threads slow a model of this size down.
    threads: int = Field(1, ge=1)


class TeacherConfig(Section):
    """How a teacher is asked for reasoning traces (``planner.teacher``)."""

    # The model of a server; empty: the first that it names.
    model: str = ""
    # "blind": shown what the planner is shown. "with_target": the label as well. Or the path of a
    # template of your own (planning/teacher_prompts).
    prompt: str = Field("blind", pattern=r"^(blind|with_target|.+\.txt)$")
    # Frames shown of an item, where the planner's style shows frames.
    frames: int = Field(4, ge=0, le=16)
    max_tokens: int = Field(128, ge=1)
    # Requests under way at a server; rows of a batch of a checkpoint.
    at_once: int = Field(8, ge=1, le=256)
    # Of one request; tries of one question before the run ends.
    timeout_s: float = Field(120, gt=0)
    tries: int = Field(6, ge=1)
    # The environment variable that holds a server's API key; empty: none is sent.
    key_env: str = ""

    def recipe(self) -> dict[str, Any]:
        """The settings that an answer depends on."""
        return self.model_dump(exclude={"at_once", "timeout_s", "tries", "key_env"})


class VllmConfig(Section):
    """vLLM, where it is what bulk planning runs the model on (plans.engine = "vllm")."""

    # "checkpoint": as the weights are stored; a plan depends on it.
    dtype: Literal["checkpoint", "float32", "bfloat16", "float16"] = "checkpoint"
    # Share of the device's memory that a worker takes for weights and cache.
    memory: float = Field(0.9, gt=0, le=1)
    # GB of the cache alone, whatever the share would leave for it; 0: what it leaves.
    cache_gb: float = Field(0.0, ge=0)
    # Tokens of the longest prompt with its answer; 0: what the checkpoint allows.
    max_tokens: int = Field(0, ge=0)
    # Neither torch.compile nor CUDA graphs: starts sooner, runs slower on a GPU.
    eager: bool = False


class PlansConfig(Section):
    """Bulk planning (``serendip plan``)."""

    # Share of the impressions that the corpus covers.
    coverage: float = Field(0.8, gt=0, le=1)
    clusters: int = Field(8, ge=1, le=8)
    beams: int = Field(12, ge=1, le=256)
    max_reasoning_tokens: int = Field(48, ge=1)
    # What runs the model: "serendip", this package; "vllm", the extra `vllm`.
    engine: Literal["serendip", "vllm"] = "serendip"
    vllm: VllmConfig = VllmConfig()
    # Of the engine "serendip". "onnx": ONNX Runtime, on the graphs that finetune exports of Gemma 3
    # checkpoints; "auto": where there are such graphs.
    runtime: Literal["auto", "onnx", "torch"] = "auto"
    # "processes": on this machine; "ray": on the cluster at RAY_ADDRESS.
    crew: Literal["processes", "ray"] = "processes"
    # Workers with a planner each, and decoding processes beside each of them.
    workers: int = Field(1, ge=1, le=256)
    decoders: int = Field(1, ge=1, le=64)
    batch_size: int = Field(64, ge=1)
    chunk_items: int = Field(256, ge=1)


class RetrieverConfig(Section):
    """The sequence model (``serendip retriever``)."""

    dimensions: int = Field(64, ge=4)
    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    max_history: int = Field(50, ge=2, le=1000)
    dropout: float = Field(0.15, ge=0, lt=1)
    epochs: int = Field(3, ge=1)
    # In histories of full length; shorter ones pack more to a batch.
    batch_size: int = Field(32, ge=1)
    lr: float = Field(2e-3, gt=0)
    # What a training target is compared with (retrieval/losses.py): "full": all items.
    # "sampled": `negatives` uniform ones that a batch shares. "mixed": half of them uniform, half
    # the batch's own targets. "bce": one, as SASRec. "gbce": `negatives` of its own, as gSASRec.
    # "auto": full, above `sampled_above` items sampled, above `mixed_above` mixed.
    loss: Literal["auto", "full", "sampled", "mixed", "bce", "gbce"] = "auto"
    sampled_above: int = Field(10_000, ge=1)
    mixed_above: int = Field(1_000_000, ge=1)
    negatives: int = Field(512, ge=2)
    # Epochs without a higher NDCG@10 on the validation users after which training ends; 0: never.
    patience: int = Field(0, ge=0)
    # Users, drawn at random, whose last events choose the epoch.
    validation_users: int = Field(5000, ge=1)
    # Columns of items.parquet that a request may filter by (docs/data.md).
    attributes: tuple[str, ...] = ()
    # Two are faster on two idle cores, and many times slower where something else runs.
    threads: int = Field(1, ge=1)

    def recipe(self) -> dict[str, Any]:
        """The settings that training depends on: a state of others is not gone on from."""
        return self.model_dump(mode="json", exclude={"threads", "attributes"})


class KeepConfig(Section):
    """Newest versions of each kind that pruning keeps, beside those that something needs."""

    tree: int = Field(3, ge=0)
    pairs: int = Field(3, ge=0)
    planner: int = Field(3, ge=0)
    plans: int = Field(3, ge=0)
    retriever: int = Field(3, ge=0)
    release: int = Field(5, ge=0)
    report: int = Field(10, ge=0)


class ArtifactsConfig(Section):
    """Retention (``serendip artifacts prune``)."""

    keep: KeepConfig = KeepConfig()
    # A draft that no process is making goes once nothing was written to it for so long.
    draft_hours: float = Field(24.0, ge=0)


class Config(Section):
    """All settings."""

    name: str = "tiny"
    seed: int = Field(0, ge=0)
    # "synth" makes the data, "movielens" imports it from source_path, "files" finds the
    # parquet files of docs/data.md in data_dir.
    source: Literal["synth", "movielens", "files"] = "synth"
    source_path: str = ""
    # {name} and {seed} are filled in.
    data_dir: str = "data/{name}-{seed}"
    artifacts_dir: str = "artifacts"
    # Rows of a log that name an item which the catalogue does not have are left out and counted,
    # up to this share of the rows; more is an error.
    max_unknown_share: float = Field(0.05, ge=0, lt=1)
    # The planning level, and how many levels above it two clusters must meet.
    level: int = Field(4, ge=1, le=4)
    level_gap: int = Field(1, ge=1, le=4)
    synth: SynthConfig = SynthConfig()
    tree: TreeConfig = TreeConfig()
    curation: CurationConfig = CurationConfig()
    planner: PlannerConfig = PlannerConfig()
    teacher: TeacherConfig = TeacherConfig()
    plans: PlansConfig = PlansConfig()
    retriever: RetrieverConfig = RetrieverConfig()
    artifacts: ArtifactsConfig = ArtifactsConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.level_gap > self.level:
            raise ValueError(f"level_gap must be at most level ({self.level})")
        if self.planner.accumulate > self.planner.batch_size:
            raise ValueError("planner.accumulate must be at most planner.batch_size")
        if self.plans.clusters > self.plans.beams:
            raise ValueError("plans.beams must be at least plans.clusters")
        if self.retriever.dimensions % self.retriever.heads:
            raise ValueError("retriever.heads must divide retriever.dimensions")
        if self.retriever.sampled_above > self.retriever.mixed_above:
            raise ValueError("retriever.mixed_above must be at least retriever.sampled_above")
        return self

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir.format(name=self.name, seed=self.seed))

    @property
    def artifacts_path(self) -> Path:
        return Path(self.artifacts_dir)


def load_config(name: str = "tiny", *, seed: int | None = None) -> Config:
    """Reads ``tiny`` or a TOML file; ``seed`` overrides the file's.

    Raises:
        InvalidRequest: no such file, no TOML, an unknown key or a value out of range.
    """
    values: dict[str, Any] = {}
    if name != "tiny":
        path = Path(name)
        try:
            values = tomllib.loads(path.read_text())
        except (FileNotFoundError, IsADirectoryError):
            raise InvalidRequest(
                "no such file", field="--config", value=name, remedy="Name `tiny` or a TOML file."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise InvalidRequest(f"no TOML: {e}", field="--config", value=name) from e
        values.setdefault("name", path.stem)
    if seed is not None:
        values["seed"] = seed
    try:
        return Config.model_validate(values)
    except ValidationError as e:
        first = e.errors()[0]
        raise InvalidRequest(
            first["msg"],
            field=".".join(map(str, first["loc"])) or name,
            value=first.get("input") if first["loc"] else None,
            remedy="The settings and their ranges stand in serendip/config.py.",
        ) from e
