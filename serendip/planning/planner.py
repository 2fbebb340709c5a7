"""The Planner: contents in, plans out. What bulk, live and evaluation all call.

Joins checkpoint, trie and tree. Knows no file of the catalogue and no server.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from serendip.artifacts import Artifact
from serendip.config import Config, PlannerConfig, PlansConfig
from serendip.core import Constraint, CorruptArtifact, InvalidRequest, Plan, PlannedCluster
from serendip.planning.decode import Decoded, decode, write
from serendip.planning.head import Head
from serendip.planning.mllm import Mllm
from serendip.planning.onnx_session import Graphs, OnnxSession
from serendip.planning.prompt import Content, Prompt, build_prompt, read_answer, write_known
from serendip.planning.search import Search, TrieHead
from serendip.planning.session import Session, TorchSession, check_trees
from serendip.planning.style import ANSWER, Style, style_of
from serendip.planning.trie import DescriptionTrie
from serendip.planning.views import View
from serendip.progress import Seconds, timed
from serendip.tree.cluster_tree import ClusterTree, Nodes

GRAPHS = "onnx"  # the folder of the exported graphs in a planner artefact


@dataclass(frozen=True)
class Planner:
    """A checkpoint that plans over one tree.

    Attributes:
        config, style: the prompt; what the checkpoint was trained with.
        search: beams and bounds of the decoding.
        seconds: what each stage of planning has taken so far.
        level, level_gap: what makes a cluster serendipitous.
        gives_topic: whether the reasoning of an item whose cluster is known begins with it; else
            the model reads the topic for itself, as it does of any other item.
        graphs: what runs the checkpoint instead of torch, or None.
    """

    mllm: Mllm
    trie: DescriptionTrie
    nodes: Nodes
    level: int
    level_gap: int
    config: PlannerConfig
    search: PlansConfig
    version: str
    style: Style
    seconds: Seconds = field(default_factory=dict)
    graphs: Graphs | None = None
    gives_topic: bool = True

    @classmethod
    def build(
        cls, mllm: Mllm, tree: ClusterTree, config: Config, version: str, style: Style
    ) -> Planner:
        """A planner of a model that is being trained; its trie is built here."""
        clusters = tree.nodes.at_level(config.level)
        descriptions = [tree.nodes.description[n] for n in clusters]
        trie = DescriptionTrie.build(
            mllm.description_tokens(descriptions),
            clusters,
            mllm.end_token,
            texts=descriptions,
            tree_version=tree.version,
            tokenizer_hash=mllm.tokenizer_hash,
        )
        return cls(
            mllm, trie, tree.nodes, config.level, config.level_gap, config.planner, config.plans,
            version, style,
        )  # fmt: skip

    @classmethod
    def open(
        cls, artifact: Artifact, nodes: Nodes, search: PlansConfig, *, threads: int = 1
    ) -> Planner:
        """Opens a planner artefact for its tree; on a GPU where there is one and torch runs it.

        Args:
            threads: of ONNX Runtime, where that is what runs the checkpoint.

        Raises:
            CorruptArtifact: it was trained for another tree, or its files do not fit.
            InvalidRequest: ``plans.runtime`` asks for graphs that it does not have.
        """
        check_tree(artifact, nodes)
        mllm = Mllm.open(artifact.path / "checkpoint")
        graphs = _open_graphs(artifact, search, threads)
        if graphs is None and torch.cuda.is_available():
            mllm.model.to("cuda")
        return cls(**cls._parts(artifact, mllm, nodes, search), graphs=graphs)

    @staticmethod
    def _parts(artifact: Artifact, mllm: Mllm, nodes: Nodes, search: PlansConfig) -> dict[str, Any]:
        """What a planner is made of, whatever runs its model."""
        return {
            "mllm": mllm,
            "trie": DescriptionTrie.open(artifact.path / "trie", mllm.tokenizer_hash),
            "nodes": nodes,
            "level": int(artifact.config["level"]),
            "level_gap": int(artifact.config["level_gap"]),
            "config": PlannerConfig.model_validate(artifact.config["planner"]),
            "search": search,
            "version": artifact.version,
            "style": style_of(artifact),
        }

    @property
    def prompt_version(self) -> str:
        """Changes when any prompt would: one of the things that make a plan stale."""
        return self.style.version(self.config.frames, self.config.text_chars)

    def siblings(self, node_id: int) -> list[int]:
        """The clusters that are serendipitous for an item of cluster ``node_id``."""
        above = self.nodes.ancestor(node_id, self.level - self.level_gap)
        return [n for n in self.nodes.under(above, self.level) if n != node_id]

    def view(
        self,
        own: int | None,
        *,
        exclude: Sequence[int] = (),
        constraint: Constraint = Constraint.NOT_OWN,
    ) -> View:
        """What may be planned for an item.

        Args:
            own: the item's cluster at the planning level; None, if it is not known: no
                constraint holds.
            exclude: clusters of the planning level that may not be.

        Raises:
            InvalidRequest: no cluster is left.
        """
        if own is None or constraint is Constraint.NONE:
            return self.trie.view(without=exclude)
        siblings = self.siblings(own) if constraint is Constraint.SIBLINGS else None
        return self.trie.view(only=siblings, without=[*exclude, own])

    def plan(
        self,
        contents: Sequence[Content],
        own_nodes: Sequence[int | None],
        *,
        item_ids: Sequence[str] | None = None,
        views: Sequence[View] | None = None,
    ) -> list[Plan]:
        """Plans a batch: the best clusters of each item, as many as configured.

        Args:
            contents: B items.
            own_nodes: B clusters that the items lie in at the planning level, or None.
            views: B views; default: everything but the own cluster.

        Raises:
            InvalidRequest: a prompt cannot be built.
        """
        ids = item_ids or [""] * len(contents)
        decoded = self._decode(contents, own_nodes, views, self.search.clusters)
        now = int(time.time() * 1000)
        return [
            Plan(
                context_item_id=item_id,
                clusters=self._clusters(d, own),
                own_node_id=own,
                reasoning=self._reasoning(d, own),
                tree_version=self.nodes.tree_version,
                planner_version=self.version,
                planned_at_ms=now,
            )
            for d, own, item_id in zip(decoded, own_nodes, ids, strict=True)
        ]

    def rank(
        self,
        contents: Sequence[Content],
        own_nodes: Sequence[int | None],
        *,
        clusters: int,
        views: Sequence[View] | None = None,
    ) -> list[tuple[PlannedCluster, ...]]:
        """The best ``clusters`` of each item, fewer where there are fewer: more than a plan holds,
        for what looks further down. More than there are beams widen the search.

        Raises:
            InvalidRequest: a prompt cannot be built.
        """
        decoded = self._decode(contents, own_nodes, views, clusters)
        return [self._clusters(d, own) for d, own in zip(decoded, own_nodes, strict=True)]

    def check(self) -> None:
        """Raises CorruptArtifact if the engine cannot decode with this checkpoint."""
        assert self._trie_head

    def write_free(
        self, contents: Sequence[Content], own_nodes: Sequence[int | None]
    ) -> list[tuple[str, str]]:
        """(reasoning, description) that the model writes unconstrained and greedily; no topic is
        given.
        """
        longest = int(max(len(t) for t in self.mllm.description_tokens(self._texts())))
        texts = write(
            self._session(),
            self.mllm.encode(self._prompts(contents, own_nodes)),
            self.mllm.end_tokens,
            (self._max_reasoning or 0) + len(self.mllm.tokens(ANSWER)) + longest,
        )
        return [
            read_answer(self.style, self.mllm.tokenizer.decode(t, skip_special_tokens=True))
            for t in texts
        ]

    @property
    def _max_reasoning(self) -> int | None:
        """None where the prompt opens the answer."""
        return self.search.max_reasoning_tokens if self.style.reasons else None

    @cached_property
    def _trie_head(self) -> TrieHead:
        head = Head.of(self.mllm.model)
        check_trees(self.mllm.model, head)
        return TrieHead(head, self.trie)

    def _session(self) -> Session:
        head = self._trie_head.head
        if self.graphs is not None:
            return OnnxSession(self.graphs, head, self.mllm.model.config.image_token_id)
        return TorchSession(self.mllm.model, head)

    def _texts(self) -> list[str]:
        return [self.nodes.description[n] for n in self.nodes.at_level(self.level)]

    def _prompts(
        self, contents: Sequence[Content], own_nodes: Sequence[int | None]
    ) -> list[Prompt]:
        return [
            build_prompt(self._placed(c, own), self.style, self.config.text_chars)
            for c, own in zip(contents, own_nodes, strict=True)
        ]

    def _known(self, own: int | None) -> str:
        """What the reasoning begins with; "" where the model writes all of it."""
        if own is None or not self.gives_topic:
            return ""
        return write_known(self.style, self.nodes.description[own])

    def _reasoning(self, decoded: Decoded, own: int | None) -> str:
        written = self.mllm.tokenizer.decode(decoded.reasoning, skip_special_tokens=True)
        return f"{self._known(own)}{written}".strip()

    def _placed(self, content: Content, own: int | None) -> Content:
        """The content with its own cluster's description."""
        return content if own is None else replace(content, cluster=self.nodes.description[own])

    def _decode(
        self,
        contents: Sequence[Content],
        own_nodes: Sequence[int | None],
        views: Sequence[View] | None,
        clusters: int,
    ) -> list[Decoded]:
        prompts = [
            replace(prompt, opening=f"{prompt.opening}{self._known(own)}")
            for prompt, own in zip(self._prompts(contents, own_nodes), own_nodes, strict=True)
        ]
        return self._search(
            prompts,
            views or [self.view(own) for own in own_nodes],
            Search(k=clusters, beams=max(clusters, self.search.beams)),
        )

    def _search(
        self, prompts: Sequence[Prompt], views: Sequence[View], how: Search
    ) -> list[Decoded]:
        """What the engine does: reasons, and searches by a beam."""
        with timed(self.seconds, "encode"):
            batch = self.mllm.encode(prompts)
        return decode(
            self._session(),
            batch,
            self._trie_head,
            views,
            how,
            opening=self.mllm.tokens(ANSWER),
            ends=self.mllm.end_tokens,
            max_reasoning=[self._max_reasoning] * len(prompts),
            seconds=self.seconds,
        )

    def _clusters(self, decoded: Decoded, own: int | None) -> tuple[PlannedCluster, ...]:
        found = decoded.answer.found
        return tuple(
            self._cluster(int(self.trie.node_of_rank[f.rank]), f.score, own) for f in found
        )

    def _cluster(self, node_id: int, score: float, own: int | None) -> PlannedCluster:
        return PlannedCluster(
            node_id=node_id,
            description=self.nodes.description[node_id],
            score=score,
            serendipitous=own is not None
            and self.nodes.is_serendipitous(own, node_id, self.level_gap),
        )


def check_tree(artifact: Artifact, nodes: Nodes) -> None:
    """Raises CorruptArtifact if a planner was trained for another tree."""
    if artifact.tree_version != nodes.tree_version:
        raise CorruptArtifact(
            f"was trained for tree {artifact.tree_version}",
            field=f"planner/{artifact.version}",
            value=nodes.tree_version,
            remedy="Fine-tune on the current tree (serendip finetune).",
        )


def _open_graphs(artifact: Artifact, search: PlansConfig, threads: int) -> Graphs | None:
    """What runs a planner's checkpoint under ``plans.runtime``; None for torch itself."""
    folder = artifact.path / GRAPHS
    if search.runtime == "torch" or (not folder.exists() and search.runtime == "auto"):
        return None
    if not folder.exists():
        raise InvalidRequest(
            "this checkpoint has no ONNX graphs: only Gemma 3 with full attention is exported",
            field="plans.runtime",
            value=search.runtime,
            remedy="Set it to auto or torch.",
        )
    return Graphs(folder, threads)
