"""A tiny MLLM with random weights: what decoding must do does not depend on what was learnt."""

import pytest
import torch
from material import DESCRIPTIONS, picture
from own_redis import need_redis, redis_server

from serendip.planning.embedded import build_embedded
from serendip.planning.prompt import Content, build_prompt
from serendip.planning.style import STYLES
from serendip.planning.trie import DescriptionTrie

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mllm():
    corpus = [f" {d}" for d in DESCRIPTIONS] * 20
    corpus += ["Title: Topic: Look: Next: A viewer liked this video. Suggest a new interest."] * 20
    made = build_embedded(corpus, 340, seed=0)
    # Sharper than freshly initialised, so that the scores of descriptions differ.
    with torch.no_grad():
        made.model.lm_head.weight.mul_(8)
    return made


@pytest.fixture(scope="session")
def trie(mllm):
    return DescriptionTrie.build(
        mllm.description_tokens(DESCRIPTIONS),
        range(100, 100 + len(DESCRIPTIONS)),
        mllm.end_token,
        tree_version="0" * 12,
        tokenizer_hash=mllm.tokenizer_hash,
    )


@pytest.fixture(scope="session")
def prompts():
    contents = [
        Content("rye bread", "", picture(0), (picture(1),)),
        Content("a bike on a hill, long title", "and some text", picture(2)),
        Content("sea", "", None, (picture(3), picture(4))),
    ]
    return [build_prompt(c, STYLES["video_cot"], 100) for c in contents]


@pytest.fixture(scope="session")
def redis_url():
    """A Redis of the tests' own."""
    need_redis()
    with redis_server() as url:
        yield url


@pytest.fixture
def redis_client(redis_url):
    """A client of an empty Redis."""
    from serendip.planning.redis_store import connect

    with connect(redis_url, retries=0) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client
