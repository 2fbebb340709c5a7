"""Made-up descriptions in five styles, and their tokens: what the decoding benches run on.

The words are pseudo-words with Zipf frequencies; the tokenizer is a real SentencePiece BPE that
is trained on a sample of all styles. All of it is seeded, and kept under artifacts/bench-decode.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece as spm

from serendip.planning.embedded import EOS, UNK, train_pieces
from serendip.planning.trie_build import TokenLists

END = EOS
PIECES = 32_768
LARGE = 262_144  # the larger vocabulary that the pieces can be spread over

_FOLDER = Path(__file__).parents[2] / "artifacts" / "bench-decode"
_WORDS = 50_000
_SAMPLE = 60_000  # descriptions of each style that the tokenizer sees
_CHUNK = 100_000
_ONSETS = "b br c ch cl d dr f fl g gr h j k l m n p pl pr qu r s sh sl st t th tr v w z"
_VOWELS = "a a a e e e i i o o u ai ea ee oa ou"
_CODAS = "n r s l t m d ck nd st ng rt"
_FUNCTION_WORDS = "the of and a in to for with on from about by at how that their"

Draw = Callable[[np.random.Generator, int], tuple[list[str], list[str]]]


def texts(style: str, n: int, *, seed: int = 0) -> list[str]:
    """n different descriptions.

    About one in ten is the beginning of another one: it is followed by itself, extended.

    Args:
        style: one of STYLES.
    """
    path = _cached(f"{style}-{n}-{seed}.txt")
    if not path.exists():
        path.write_text("\n".join(_generate(style, n, seed)))
    return path.read_text().split("\n")


def token_lists(style: str, n: int, vocabulary: int = PIECES, *, seed: int = 0) -> TokenLists:
    """The tokens of n different descriptions, without an end token; no two are equal.

    A vocabulary above PIECES is the same tokenizer with its IDs spread over more of them by a
    seeded permutation (the first four keep theirs): a larger matrix and other gathers, not the
    longer pieces that a tokenizer of that size would have.
    """
    path = _cached(f"{style}-{n}-{seed}-tokens.npz")
    if not path.exists():
        lists = _encode(texts(style, n, seed=seed))
        np.savez(path, flat=lists.flat, start=lists.start)
    with np.load(path) as arrays:
        flat, start = arrays["flat"], arrays["start"]
    return TokenLists(ids_in(vocabulary)[flat], start)


def ids_in(vocabulary: int) -> npt.NDArray[np.int32]:
    """int32[PIECES]: each piece's ID in a vocabulary."""
    ids = np.arange(PIECES, dtype=np.int32)
    if vocabulary != PIECES:
        spread = np.random.default_rng(7).permutation(np.arange(UNK + 1, vocabulary))
        ids[UNK + 1 :] = spread[: PIECES - UNK - 1]
    return ids


@cache
def tokenizer() -> spm.SentencePieceProcessor:
    """A BPE of PIECES pieces, with the settings of the project's embedded model."""
    path = _cached("pieces.model")
    if not path.exists():
        sample = (text for style in STYLES for text in _generate(style, _SAMPLE, seed=1))
        path.write_bytes(train_pieces(sample, PIECES))
    pieces = spm.SentencePieceProcessor(model_file=str(path))
    assert pieces.get_piece_size() == PIECES
    return pieces


def piece_bytes() -> list[bytes]:
    """What each piece writes; nothing for the four that stand for no text."""
    pieces = tokenizer()
    found = []
    for i in range(PIECES):
        piece = pieces.id_to_piece(i)
        if i <= UNK:
            found.append(b"")
        elif pieces.is_byte(i):
            found.append(bytes([int(piece[3:-1], 16)]))
        else:
            found.append(piece.replace("▁", " ").encode())
    return found


def _encode(descriptions: list[str]) -> TokenLists:
    pieces = tokenizer()
    flats, lengths = [], []
    for at in range(0, len(descriptions), _CHUNK):
        lists = pieces.encode(descriptions[at : at + _CHUNK], num_threads=os.cpu_count() or 1)
        part = TokenLists.of(lists)
        flats.append(part.flat)
        lengths.append(part.lengths)
    start = np.concatenate([[0], np.concatenate(lengths).cumsum(dtype=np.int64)])
    return TokenLists(np.concatenate(flats), start)


def _generate(style: str, n: int, seed: int) -> list[str]:
    rng = np.random.default_rng([seed, list(STYLES).index(style)])
    found: dict[str, None] = {}
    while len(found) < n:
        count = min(_CHUNK, n - len(found) + 100)
        wholes, extensions = STYLES[style](rng, count)
        extended = rng.random(count) < 0.1
        for whole, extension, more in zip(wholes, extensions, extended.tolist(), strict=True):
            found[whole] = None
            if more:
                found[whole + extension] = None
    return list(found)[:n]


# --- styles ----------------------------------------------------------------------------------


def _words(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """ "velou grast chai": 3-6 words."""
    return list(_phrases(rng, rng.integers(3, 7, count))), _more(rng, count, " ")


def _sentences(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """8-14 words, of which four in ten are function words."""
    sizes = rng.integers(8, 15, count)
    return list(_phrases(rng, sizes, function_words=0.4)), _more(rng, count, " for ")


def _paths(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """ "Velou > Grast Chai > Thomo Brea": a few tops, up to 60 under each, and many below."""
    top, middle, below = _zipf(40)(rng, count), _zipf(60)(rng, count), _zipf(5_000)(rng, count)
    # A child's name depends on its parent, as in a catalogue: the same draw is the same name.
    names = _names()
    second = names[(top * 60 + middle) % len(names)]
    third = names[(top * 7_919 + middle * 104_729 + below * 31) % len(names)]
    steps = zip(names[top], second, third, strict=True)
    return [" > ".join(step) for step in steps], _more(rng, count, " > ", title=True)


def _tags(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """ "chai, velou grast, thomo": 2-5 tags of one or two words."""
    sizes = rng.integers(2, 6, count)
    tags = iter(_phrases(rng, 1 + (rng.random(int(sizes.sum())) < 0.25)))
    return [", ".join(next(tags) for _ in range(k)) for k in sizes.tolist()], _more(
        rng, count, ", "
    )


def _codes(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """ "k4-0813-77"."""
    letters = rng.integers(97, 123, count).tolist()
    digits = rng.integers(0, [10, 10_000, 100, 10], (count, 4)).tolist()
    pairs = zip(letters, digits, strict=True)
    return (
        [f"{chr(x)}{a}-{b:04d}-{c:02d}" for x, (a, b, c, _) in pairs],
        [f"-{d}" for _, _, _, d in digits],
    )


STYLES: dict[str, Draw] = {
    "words": _words,
    "sentences": _sentences,
    "paths": _paths,
    "tags": _tags,
    "codes": _codes,
}


# --- words -----------------------------------------------------------------------------------


def _phrases(
    rng: np.random.Generator, sizes: npt.NDArray[np.integer], function_words: float = 0.0
) -> Iterator[str]:
    """Phrases of Zipf words."""
    total = int(sizes.sum())
    drawn = _lexicon()[_zipf(_WORDS)(rng, total)]
    if function_words:
        small = rng.random(total) < function_words
        few = np.array(_FUNCTION_WORDS.split(), object)
        drawn[small] = few[_zipf(len(few))(rng, int(small.sum()))]
    words = drawn.tolist()
    ends = sizes.cumsum().tolist()
    return (
        " ".join(words[end - size : end]) for size, end in zip(sizes.tolist(), ends, strict=True)
    )


def _more(rng: np.random.Generator, count: int, join: str, *, title: bool = False) -> list[str]:
    """What makes a description a longer one: one or two words."""
    more = _phrases(rng, rng.integers(1, 3, count))
    return [join + (words.title() if title else words) for words in more]


@cache
def _zipf(n: int) -> Callable[[np.random.Generator, int], npt.NDArray[np.int64]]:
    """Draws 0 .. n - 1, each as often as the inverse of its place."""
    cumulated = np.cumsum(1 / np.arange(1, n + 1))
    cumulated /= cumulated[-1]
    return lambda rng, count: np.minimum(np.searchsorted(cumulated, rng.random(count)), n - 1)


@cache
def _lexicon() -> npt.NDArray[np.object_]:
    """Different pronounceable pseudo-words, the frequent ones shorter."""
    rng = np.random.default_rng(11)
    onsets, vowels, codas = _ONSETS.split(), _VOWELS.split(), [*[""] * 4, *_CODAS.split()]
    found: dict[str, None] = {}
    for most, until in ((2, 2_000), (3, 20_000), (4, _WORDS)):
        while len(found) < until:
            drawn = rng.integers(0, [len(onsets), len(vowels), len(codas)], (10_000, 4, 3))
            counts = rng.integers(max(1, most - 2), most + 1, 10_000)
            for syllables, count in zip(drawn.tolist(), counts.tolist(), strict=True):
                word = "".join(onsets[a] + vowels[b] + codas[c] for a, b, c in syllables[:count])
                found[word] = None
                if len(found) == until:
                    break
    return np.array(list(found), object)


@cache
def _names() -> npt.NDArray[np.object_]:
    """Titles of one or two words."""
    rng = np.random.default_rng(12)
    names = _phrases(rng, 1 + (rng.random(200_000) < 0.6))
    return np.array([name.title() for name in names], object)


def _cached(name: str) -> Path:
    """A file of this source's own: another source text has another folder."""
    folder = _FOLDER / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
