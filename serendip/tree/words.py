"""The words of a text, in languages with and without spaces.

Letters between word boundaries are words; a run of Han characters, which no space divides, is all
its pairs; a run of katakana is a word. Knows no item and no cluster.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from scipy.sparse import csr_matrix
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
