"""A pass with less work is the pass of transformers: states, and the gradient of every weight."""

import pytest
import torch
from material import picture

from serendip.planning.embedded import build_embedded
from serendip.planning.gemma_pass import is_plain, states_at
from serendip.planning.mllm import IGNORED, answer_loss
from serendip.planning.prompt import Content, build_prompt, write_answer
from serendip.planning.style import STYLES

COT = STYLES["video_cot"]
TURN = write_answer(COT, "bread: rye", "winter scene", "bike: hill")


@pytest.fixture
def made():
    """A model of the test's own, with no weight where it began: norms begin at 0."""
    made = build_embedded(
        ["Title: Topic: Look: Next: rye bread bike hill winter"] * 50, 340, seed=1
    )
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def batch_of(made, pictures):
    # Pictures of different number, and words of different length: the shorter rows are padded.
    images = [picture(n) if pictures else None for n in range(3)]
    style = COT if pictures else STYLES["text"]
    contents = [
        Content("rye bread", "", images[0], tuple(images[1:])),
        Content("a bike on a hill, long title", "and some text", images[2]),
        Content("sea", "more of it", images[0], tuple(images[1:2])),
    ]
    prompts = [build_prompt(c, style, 100) for c in contents]
    return made.encode_training(prompts, [TURN, f"{TURN} and on", TURN])


def learn(made, loss):
    made.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pictures", [True, False])
def test_states_are_those_of_transformers(made, pictures):
    batch, labels = batch_of(made, pictures)
    wanted = labels != IGNORED
    assert (batch["attention_mask"] == 0).any()
    assert ("pixel_values" in batch) == pictures
    theirs = made.model.model(**batch, use_cache=False).last_hidden_state[wanted]
    ours = states_at(made.model, batch["input_ids"], batch.get("pixel_values"), wanted)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    # A token of a picture sees its own picture to the end, and of others what was before: states
    # of pictures themselves differ if not.
    if pictures:
        wanted = batch["input_ids"] == made.model.config.image_token_id
        theirs = made.model.model(**batch, use_cache=False).last_hidden_state[wanted]
        ours = states_at(made.model, batch["input_ids"], batch["pixel_values"], wanted)
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("pictures", [True, False])
def test_gradients_are_those_of_transformers(made, monkeypatch, pictures):
    batch, labels = batch_of(made, pictures)
    weights = torch.tensor([0.1, 0.02, 0.3])
    ours = learn(made, answer_loss(made, batch, labels, weights))
    monkeypatch.setattr("serendip.planning.mllm.is_plain", lambda model: False)
    theirs = learn(made, answer_loss(made, batch, labels, weights))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # The bias of keys has no gradient but rounding.
        assert (ours[name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-6, name


def test_what_is_not_plain_goes_through_transformers(made):
    model = made.model
    assert is_plain(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(model)
    model.config.text_config.layer_types[1] = "sliding_attention"
    assert not is_plain(model)
    model.config.text_config.layer_types[1] = "full_attention"
    model.model.language_model.gradient_checkpointing = True
    assert not is_plain(model)
    model.model.language_model.gradient_checkpointing = False
    assert is_plain(model)
    assert not is_plain(model.to(torch.bfloat16))
    assert not is_plain(torch.nn.Linear(2, 2))
