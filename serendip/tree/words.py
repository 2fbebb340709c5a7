"""The words of a text, in languages with and without spaces.

Letters between word boundaries are words; a run of Han characters, which no space divides, is all
its pairs; a run of katakana is a word. Knows no item and no cluster.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_matrix, csr_matrix
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from serendip.core import InvalidData

_WORD = re.compile(r"(?u)\b[^\W\d_]{2,}\b")  # letters: a year tells no interest
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3005"
_KATAKANA = r"\u30a1-\u30fa\u30fc"
_HIRAGANA = r"\u3041-\u309f"
_UNSPACED = re.compile(f"[{_HAN}{_KATAKANA}{_HIRAGANA}]+")
# Hiragana is grammar more than meaning; these few characters are, too: neither is in a word.
_RUN = re.compile(f"[{_KATAKANA}]{{2,}}|(?:(?![的了着们吗呢吧及与])[{_HAN}])+")
_IS_HAN = re.compile(f"[{_HAN}]")

# Pairs are taken to be of one run where they share this part of the items that have either, and
# are in so many items at least; a run is cut after so many pairs.
_TOGETHER, _PHRASE_ITEMS, _PHRASE_PAIRS = 0.9, 3, 5


def words_of(text: str) -> list[str]:
    """The words of a text in order, lower case; English stop words are left out.

    >>> words_of("The sourdough of 1990: 天然酵母")
    ['sourdough', '天然', '然酵', '酵母']
    """
    text = unicodedata.normalize("NFKC", text).lower()
    found = [w for w in _WORD.findall(_UNSPACED.sub(" ", text)) if w not in ENGLISH_STOP_WORDS]
    for run in _UNSPACED.findall(text):
        for part in _RUN.findall(run):
            if len(part) == 1 or not _IS_HAN.match(part):
                found.append(part)
            else:
                found += [part[i : i + 2] for i in range(len(part) - 1)]
    return found


def is_unspaced(word: str) -> bool:
    """Whether a word is of a script that has no spaces between words."""
    return bool(_UNSPACED.search(word))


def phrases(counts: csr_matrix, words: Sequence[str]) -> list[str]:
    """V names to show for V words: pairs of a run that occur together become the run that they
    are of (``手冲 冲咖 咖啡``: ``手冲咖啡``), and then have one name; other words keep theirs.

    Args:
        counts: int[N, V], word counts.
    """
    holds = (counts > 0).astype(np.int64).tocsc()
    df = np.diff(holds.indptr)
    pairs = [i for i, w in enumerate(words) if len(w) == 2 and _IS_HAN.match(w)]
    starting: dict[str, list[int]] = defaultdict(list)
    for i in pairs:
        if df[i] >= _PHRASE_ITEMS:
            starting[words[i][0]].append(i)
    after: dict[int, int] = {}
    for i in pairs:
        alike = (j for j in starting[words[i][1]] if df[j] >= _TOGETHER * df[i])
        for j in alike:
            together = len(np.intersect1d(_rows(holds, i), _rows(holds, j), assume_unique=True))
            if j != i and together >= _TOGETHER * max(df[i], df[j]):
                after[i] = j
                break
    names = list(words)
    for first in sorted(after.keys() - set(after.values())):
        run = [first]
        while (following := after.get(run[-1])) is not None and len(run) < _PHRASE_PAIRS:
            run.append(following)
        text = words[first] + "".join(words[i][1] for i in run[1:])
        for i in run:
            names[i] = text
    return names


def _rows(matrix: csc_matrix, column: int) -> npt.NDArray[np.int32]:
    rows: npt.NDArray[np.int32] = matrix.indices[matrix.indptr[column] : matrix.indptr[column + 1]]
    return rows


def count_words(texts: Sequence[str], min_df: int, max_df: float) -> tuple[csr_matrix, list[str]]:
    """Word counts int[N, V] and the V words.

    Args:
        min_df: a word must occur in this many texts.
        max_df: and in at most this share of them.

    Raises:
        InvalidData: no word remains.
    """
    vectorizer = CountVectorizer(min_df=min_df, max_df=max_df, analyzer=words_of)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError as e:
        raise InvalidData(
            f"no words to describe clusters by ({e})",
            field="items.parquet:title,text",
            remedy="Clusters are named by words: lower tree.min_df, or add to title or text.",
        ) from e
    return counts, vectorizer.get_feature_names_out().tolist()


def count_known_words(texts: Sequence[str], words: Sequence[str]) -> csr_matrix:
    """Counts int[N, V] of these V words alone."""
    return CountVectorizer(vocabulary=list(words), analyzer=words_of).transform(texts)
