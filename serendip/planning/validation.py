"""How a training is looked at: what the planner says of items that it is not trained on.

And which look is the best. Knows no file and no optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from serendip.planning.examples import Example
from serendip.planning.mllm import IGNORED, answer_loss
from serendip.planning.planner import Planner
from serendip.planning.prompt import Content, build_prompt, write_answer
from serendip.planning.training_state import Line


def best_look(lines: Sequence[Line], items: int) -> Line:
    """The look that is kept: recall decides as far as it can tell, the loss beyond.

    Recall on a few dozen items moves by chance. A look is a candidate while its recall is within
    one standard error of the highest so far (Breiman et al. 1984, section 3.4.3, the 1-SE rule);
    of the candidates the one with the lowest validation loss is kept, the later of equals. It is
    decided look by look, so that no weights but the best so far have to be kept.

    Args:
        lines: at least one look; without validation items the last is kept.
        items: validation items.
    """
    kept, top = lines[0], lines[0].get("recall", 0.0)
    for line in lines[1:]:
        recall = line.get("recall", 0.0)
        top = max(top, recall)
        bound = top - (top * (1 - top) / max(items, 1)) ** 0.5
        beaten = kept.get("recall", 0.0) < bound
        if recall >= bound and (beaten or line["validation_loss"] <= kept["validation_loss"]):
            kept = line
    return kept


@torch.inference_mode()
def validate(planner: Planner, examples: Sequence[Example], rows: int) -> Line:
    """validation_loss (of the planned description's tokens), match_rate and recall
    (unconstrained) and recall_at_1 (constrained) on validation items; 0 where there are none.

    Args:
        rows: items that go through the model together.
    """
    if not examples:
        return {"validation_loss": 0.0}
    # A planner keeps copies of the head's rows, and training has changed the head since.
    planner = replace(planner)
    batches = [examples[at : at + rows] for at in range(0, len(examples), rows)]
    sums = {"validation_loss": 0.0, "match_rate": 0.0, "recall": 0.0, "recall_at_1": 0.0}
    for batch in batches:
        contents = [e.content.thinned(planner.config.frames) for e in batch]
        own = [e.own_id for e in batch]
        written = [planner.trie.resolve(text) for _, text in planner.write_free(contents, own)]
        plans = planner.plan(contents, own)
        sums["validation_loss"] += _answer_loss(planner, contents, batch) * len(batch)
        for said, plan, example in zip(written, plans, batch, strict=True):
            sums["match_rate"] += said is not None
            sums["recall"] += said == example.node_id
            sums["recall_at_1"] += plan.clusters[0].node_id == example.node_id
    return {name: value / len(examples) for name, value in sums.items()}


def _answer_loss(
    planner: Planner, contents: Sequence[Content], examples: Sequence[Example]
) -> float:
    """Mean cross-entropy of the target descriptions, the reasoning given."""
    prompts = [build_prompt(c, planner.style, planner.config.text_chars) for c in contents]
    answers = [write_answer(planner.style, e.own, e.look, e.target) for e in examples]
    batch, labels = planner.mllm.encode_training(prompts, answers)
    for row, example in zip(labels, examples, strict=True):
        stop = int((row != IGNORED).nonzero()[-1]) + 1
        (target,) = planner.mllm.description_tokens([example.target])
        row[: stop - 1 - len(target)] = IGNORED
    return float(answer_loss(planner.mllm, batch, labels))
