"""Words of texts with and without spaces, and a tree over a Chinese catalogue."""

import numpy as np
import pytest
import word_catalogue

from serendip.artifacts import Artifacts
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ClusterTree, normal_form
from serendip.tree.words import words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Baking the Rye, 1990s: a 2nd loaf", ["baking", "rye", "loaf"]),
        ("天然酵母", ["天然", "然酵", "酵母"]),
        ("猫和狗的食物", ["猫和", "和狗", "食物"]),
        ("我们的猫", ["猫"]),
        ("AI绘画 ＡＢＣ", ["ai", "abc", "绘画"]),
        ("パンの作り方", ["パン", "作", "方"]),
        ("커피 원두 볶기", ["커피", "원두", "볶기"]),
        ("1994 !!", []),
    ],
)
def test_words_of_many_scripts(text, words):
    found = words_of(text)
    assert [w for w in found if w != "我"] == words


CHINESE = {
    "家庭烘焙": {
        "酸面包": ["酵母", "黑麦", "发酵", "烤箱"],
        "蛋糕": ["奶油", "糖霜", "巧克力", "模具"],
    },
    "手冲咖啡": {
        "豆子": ["产地", "烘豆", "研磨", "水洗"],
        "器具": ["滤杯", "温度计", "细口壶", "电子秤"],
    },
    "山地骑行": {
        "下坡": ["避震", "碟刹", "弯道", "护具"],
        "爬坡": ["牙盘", "踏频", "体能", "轻量"],
    },
    "城市夜跑": {
        "装备": ["跑鞋", "头灯", "反光衣", "耳机"],
        "训练": ["配速", "心率", "间歇", "拉伸"],
    },
}


FILLERS = ("今日分享", "新手入门", "周末记录", "经验心得")


def chinese_titles(per_leaf=10):
    """Titles by item ID: an interest, a part of it, two of the part's words, a filler, no space."""
    rng = np.random.default_rng(0)
    titles = {}
    for interest, parts in CHINESE.items():
        for part, words in parts.items():
            for _ in range(per_leaf):
                two = "".join(rng.permutation(words)[:2])
                filler = rng.choice(FILLERS)
                titles[f"i{len(titles):03d}"] = f"{interest}的{part}：{two}，{filler}"
    return titles


def test_a_chinese_catalogue_gets_clusters_and_descriptions_of_its_own(tmp_path):
    titles = chinese_titles()
    word_catalogue.write(tmp_path / "data", titles)
    config = word_catalogue.config(tmp_path, branching=(2, 2, 2, 1))
    tree = ClusterTree.open(publish_tree(config, Artifacts(config.artifacts_path)))
    for level in (1, 2, 3, 4):
        texts = [tree.nodes.description[node] for node in tree.nodes.at_level(level)]
        assert len({normal_form(t) for t in texts}) == len(texts)
    # Whole words, and no pair of characters across two of them.
    known = {*CHINESE, *FILLERS}
    known |= {
        w for parts in CHINESE.values() for part in parts.items() for w in (part[0], *part[1])
    }
    for text in tree.nodes.description[1:]:
        assert set(text.replace(": ", "、").split("、")) <= known
    # At level 2 lie the four interests: each is told by characters of its own name or its parts.
    for interest, first in zip(CHINESE, ("i000", "i020", "i040", "i060"), strict=True):
        node = tree.node_of(first, 2)
        text = tree.nodes.description[node]
        told = text.split(": ")[1].split("、")
        own = {
            interest,
            *CHINESE[interest],
            *(w for words in CHINESE[interest].values() for w in words),
        }
        assert set(told) <= own, text
        start, end = tree.slice(node)
        same = sum(titles[i].startswith(interest) for i in tree.item_ids[start:end])
        assert same > 0.8 * (end - start)
