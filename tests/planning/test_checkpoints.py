"""Every architecture in use is opened, encoded and read alike."""

import numpy as np
import pytest
import torch
from checkpoints import ARCHITECTURES, tiny_gemma3_capped

from serendip.planning.mllm import Mllm, answer_loss
from serendip.planning.prompt import Content, build_prompt
from serendip.planning.style import STYLES

BUILDERS = {**ARCHITECTURES, "gemma3_capped": tiny_gemma3_capped}
PROCESSORS = {
    "gemma3": "Gemma3Processor",
    "gemma3_capped": "Gemma3Processor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
    "smolvlm": "Idefics3Processor",
}


@pytest.fixture(scope="module", params=BUILDERS)
def named(request):
    return request.param, BUILDERS[request.param]()


@pytest.fixture
def tiny(named):
    return named[1]


def picture(seed, height=40, width=40):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mixed():
    """Two pictures of different shapes, none, one."""
    contents = [
        Content("rye bread", "", picture(0), (picture(1, 30, 60),)),
        Content("sea", "and a longer text"),
        Content("a bike on a hill", "", picture(2)),
    ]
    styles = [STYLES["video_cot" if c.images else "text"] for c in contents]
    return [build_prompt(c, s, 100) for c, s in zip(contents, styles, strict=True)]


@torch.no_grad()
def read(mllm, prompts):
    return mllm.model.model(**mllm.encode(prompts), use_cache=True).last_hidden_state[:, -1]


def test_a_checkpoint_of_any_architecture_is_the_same_when_opened(named, mixed, tmp_path):
    name, tiny = named
    tiny.save(tmp_path)
    again = Mllm.open(tmp_path)
    assert type(again.model) is type(tiny.model)
    assert type(again.processor).__name__ == PROCESSORS[name]
    assert again.tokenizer_hash == tiny.tokenizer_hash
    assert again.end_tokens == tiny.end_tokens
    batch, same = tiny.encode(mixed), again.encode(mixed)
    assert batch.keys() == same.keys()
    assert all(torch.equal(batch[k], same[k]) for k in batch)
    with torch.inference_mode():
        assert torch.equal(tiny.model(**batch).logits, again.model(**same).logits)


def test_prompts_with_and_without_pictures_are_padded_on_the_left(tiny, mixed):
    batch = tiny.encode(mixed)
    mask = batch["attention_mask"]
    assert mask.sum(dim=1).min() < mask.shape[1]
    assert (mask.diff(dim=1) >= 0).all()
    assert (mask[:, -1] == 1).all()
    assert torch.isfinite(read(tiny, mixed)).all()


def test_a_prompt_reads_alike_alone_and_in_a_batch(tiny, mixed):
    together = read(tiny, mixed)
    alone = torch.cat([read(tiny, [p]) for p in mixed])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_words_alone_are_learnt_alike_with_and_without_a_mask(tiny):
    contents = [Content("rye bread", "and a longer text"), Content("sea")]
    prompts = [build_prompt(c, STYLES["text"], 100) for c in contents]
    batch, labels = tiny.encode_training(prompts, [" rye", " sea"])
    assert batch["attention_mask"].min() == 0
    with torch.no_grad():
        masked = tiny.model(**batch).logits[:, :-1].flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(masked, labels[:, 1:].flatten())
        torch.testing.assert_close(answer_loss(tiny, batch, labels), expected, atol=1e-4, rtol=0)


def test_another_picture_and_another_word_change_what_the_model_would_say(tiny):
    def logits(title, seed):
        content = Content(title, "", picture(seed))
        hidden = read(tiny, [build_prompt(content, STYLES["video_cot"], 100)])
        return tiny.model.get_output_embeddings()(hidden)[0].detach()

    one, other_picture, other_word = logits("sea", 0), logits("sea", 1), logits("oats", 0)
    assert (one - other_picture).abs().max() > 1
    assert (one - other_word).abs().max() > 1


def test_a_tiny_model_is_tiny_and_its_turns_end(tiny):
    assert sum(p.numel() for p in tiny.model.parameters()) < 1_250_000
    settings = tiny.model.generation_config
    assert settings.pad_token_id == tiny.tokenizer.pad_token_id
    assert tiny.end_tokens
    assert settings.pad_token_id is not None
