"""Small real language models in float64, and the scorer of every description by brute force."""

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from serendip.planning.head import Head
from serendip.planning.search import TrieHead, search
from serendip.planning.session import TorchSession
from serendip.planning.trie import START, DescriptionTrie

torch.set_num_threads(1)

END = 1


def small_model(seed=0, vocabulary=12, **config):
    """A Gemma 3 text model with weights large enough that every token changes the next one's."""
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.6,
        "layer_types": ["full_attention"] * 2,
        "pad_token_id": 0,
    }
    return Gemma3ForCausalLM(
        Gemma3TextConfig(vocab_size=vocabulary, **settings | config)
    ).double().eval()  # fmt: skip


def batch_of(prompts):
    """Left-padded token lists as model inputs."""
    longest = max(map(len, prompts))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        ),
    }  # fmt: skip


def build(rows, **options):
    return DescriptionTrie.build(rows, range(len(rows)), END, **options)


def find(model, trie, prompts, how, views=None, seeds=None):
    """What the search finds, without any free text before it."""
    head = Head.of(model)
    session = TorchSession(model, head)
    with torch.inference_mode():
        hidden = session.prefill(batch_of(prompts))
    tips = np.full(len(prompts), session.slots - 1)
    views = views or [trie.view() for _ in prompts]
    return search(session, hidden, tips, TrieHead(head, trie), views, how, seeds)


@torch.inference_mode()
def score_all(model, trie, prompt, temperature=1.0):
    """(renormalized, full) scores of every rank: float64[D] each.

    Every description is read as a whole, by itself and without a cache; what is allowed is
    looked up in the descriptions, not in the trie's states.
    """
    whole = [tuple(trie.tokens_of(rank)) for rank in range(len(trie))]
    allowed = {}
    for tokens in whole:
        for n in range(len(tokens)):
            allowed.setdefault(tokens[:n], set()).add(tokens[n])
    # A description that begins no other one is complete without its end token.
    renormalized, full = [], []
    for tokens in whole:
        ids = torch.tensor([[*prompt, *tokens[:-1]]])
        z = model(input_ids=ids).logits[0, len(prompt) - 1 :] / temperature
        rest = [sorted(allowed[tokens[:n]]) for n in range(len(tokens))]
        renormalized.append(
            sum(float(z[n, t] - z[n, rest[n]].logsumexp(0)) for n, t in enumerate(tokens))
        )
        full.append(sum(float(z[n, t] - z[n].logsumexp(0)) for n, t in enumerate(tokens)))
    return np.array(renormalized), np.array(full)


def states_of(trie):
    """Every state that is not a terminal."""
    return [s for s in range(START, len(trie.token)) if trie.degree(np.array([s]))[0]]
