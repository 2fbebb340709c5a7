"""One TOML sets everything; what it gets wrong is named."""

import pytest

from serendip.config import Config, load_config
from serendip.core import InvalidRequest


def test_tiny_is_the_defaults_and_the_seed_names_the_data():
    assert load_config() == Config()
    assert load_config(seed=7).data_path.name == "tiny-7"


def test_a_file_overrides_single_keys(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[tree]\ndimensions = 8\n")
    config = load_config(str(path), seed=3)
    assert (config.tree.dimensions, config.tree.restarts) == (8, Config().tree.restarts)
    assert (config.name, config.seed) == ("mine", 3)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[tree]\ndimension = 8\n", "tree.dimension"),
        ("level = 9\n", "level"),
        ("level = 2\nlevel_gap = 3\n", "level_gap"),
        ("[retriever]\nheads = 3\n", "retriever.heads"),
        ("[retriever]\nsampled_above = 9\nmixed_above = 8\n", "retriever.mixed_above"),
        ("[retriever]\nloss = 'hinge'\n", "retriever.loss"),
        ("[plans]\nclusters = 8\nbeams = 4\n", "beams"),
        ("[planner]\nstyle = 'x'\n", "planner.style"),
        ("level = \n", "--config"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, named):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as error:
        load_config(str(path))
    assert named in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(InvalidRequest, match=r"--config: no such file, got 'no/such\.toml'"):
        load_config("no/such.toml")


def test_a_fold_beyond_the_last_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[curation]\nheld_out_share = 0.25\nheld_out_fold = 3\n")
    assert load_config(str(path)).curation.held_out_fold == 3
    path.write_text("[curation]\nheld_out_share = 0.25\nheld_out_fold = 4\n")
    with pytest.raises(InvalidRequest, match="held_out_fold"):
        load_config(str(path))
