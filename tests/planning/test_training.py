"""The training loop: resumed as if it had not been cut off, ended at its best look."""

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from serendip.core import InvalidRequest
from serendip.planning import training
from serendip.planning.embedded import build_embedded
from serendip.planning.training import Stage, Watch, build_optimizers, train

STAGE = Stage("line", 1, 40, 0.1)


class Line(torch.nn.Module):
    """A matrix and a vector that are to become 1, and one that stays as it is."""

    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.full((2, 3), 5.0))
        self.vector = torch.nn.Parameter(torch.tensor([5.0, -3.0]))
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)


def parts_of(model):
    def parts(rng):
        yield ((model.matrix - torch.from_numpy(rng.normal(1, 0.1, (2, 3)))) ** 2).sum()
        noise = torch.rand(2)  # as dropout's
        yield ((model.vector * (0.9 + 0.2 * noise) - 1) ** 2).sum()

    return parts


def cut_off(model, at):
    """Parts that are interrupted at a step."""
    inner, steps = parts_of(model), []

    def parts(rng):
        if len(steps) == at:
            raise KeyboardInterrupt
        steps.append(1)
        return inner(rng)

    return parts


def weights_of(model):
    return torch.cat([model.matrix.detach().flatten(), model.vector.detach()])


def two_kinds(model, stage):
    """Muon keeps one buffer and nothing else; SGD keeps another."""
    return [
        torch.optim.Muon([model.matrix], lr=stage.peak_lr, momentum=0.9),
        torch.optim.SGD([model.vector], lr=stage.peak_lr / 10, momentum=0.9),
    ]


@pytest.mark.parametrize("build", [training.build_optimizers, two_kinds])
def test_training_that_was_cut_off_goes_on_as_if_it_had_not(tmp_path, monkeypatch, build):
    monkeypatch.setattr(training, "_SAVE_EVERY", 10)
    monkeypatch.setattr(training, "build_optimizers", build)
    whole = Line()
    train(whole, parts_of(whole), STAGE, seed=0, state_path=tmp_path / "a.safetensors")

    path, cut = tmp_path / "b.safetensors", Line()
    with pytest.raises(KeyboardInterrupt):
        train(cut, cut_off(cut, 25), STAGE, seed=0, state_path=path)
    resumed, more = Line(), []
    inner = parts_of(resumed)
    train(
        resumed, lambda rng: more.append(1) or inner(rng), STAGE, seed=0, state_path=path
    )  # fmt: skip
    assert len(more) == 20
    assert torch.equal(weights_of(resumed), weights_of(whole))
    assert not torch.isclose(weights_of(whole), weights_of(Line()), atol=0.1).any()


def test_only_what_is_trained_is_saved(tmp_path):
    from safetensors.torch import load_file

    path, model = tmp_path / "a.safetensors", Line()
    train(model, parts_of(model), STAGE, seed=0, state_path=path)
    assert not [name for name in load_file(path) if "frozen" in name]
    assert torch.equal(model.frozen, torch.ones(2))


def test_a_stage_that_had_ended_is_not_trained_again(tmp_path):
    path, model = tmp_path / "a.safetensors", Line()
    train(model, parts_of(model), STAGE, seed=0, state_path=path)
    again = Line()
    train(again, cut_off(again, 0), STAGE, seed=0, state_path=path)
    assert torch.equal(weights_of(again), weights_of(model))


def test_a_broken_state_is_not_resumed_from(tmp_path):
    path, model, whole = tmp_path / "a.safetensors", Line(), Line()
    path.write_bytes(b"half a file")
    train(model, parts_of(model), STAGE, seed=0, state_path=path)
    train(whole, parts_of(whole), STAGE, seed=0, state_path=tmp_path / "b.safetensors")
    assert torch.equal(weights_of(model), weights_of(whole))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stage": Stage("line", 1, 40, 0.2)}, "lr 0.1, now 0.2"),
        ({"stage": Stage("line", 1, 50, 0.1)}, "steps 40, now 50"),
        ({"stage": Stage("line", 1, 40, 0.1, bfloat16=True)}, "bfloat16 False, now True"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"recipe": {"examples": "b"}}, "examples 'a', now 'b'"),
    ],
)
def test_a_state_of_another_recipe_is_refused_and_left_as_it_is(tmp_path, changes, named):
    path, model = tmp_path / "a.safetensors", Line()
    given = {"stage": STAGE, "seed": 0, "recipe": {"examples": "a"}}
    stage = given.pop("stage")
    train(model, parts_of(model), stage, state_path=path, **given)
    before = path.read_bytes()
    changed = {"stage": stage, **given, **changes}
    other = Line()
    with pytest.raises(InvalidRequest, match=rf"begun with {named}.*to begin anew"):
        train(other, parts_of(other), changed.pop("stage"), state_path=path, **changed)
    assert path.read_bytes() == before
    assert torch.equal(weights_of(other), weights_of(Line()))


def test_parts_add_up_to_the_step_s_loss(tmp_path):
    def in_parts(model, number):
        def parts(rng):
            rows = torch.from_numpy(rng.normal(1, 0.1, (8, 2, 3)))
            for chunk in rows.chunk(number):
                yield ((model.matrix - chunk) ** 2).sum() / len(rows)

        return parts

    models = []
    for number in (1, 4):
        model = Line()
        model.vector.requires_grad_(False)
        path = tmp_path / f"{number}.safetensors"
        train(model, in_parts(model, number), STAGE, seed=0, state_path=path)
        models.append(weights_of(model))
    torch.testing.assert_close(*models, rtol=0, atol=1e-5)


def watching(model, scores, patience=0):
    """A look each 4 steps, whose scores are given; the highest is the best, the first of equals."""
    told = []
    left = iter(scores)
    watch = Watch(
        every=4,
        measure=lambda: {"score": next(left)},
        best=lambda lines: max(lines, key=lambda line: line["score"]),
        tell=lambda lines: told.append([line["step"] for line in lines]),
        patience=patience,
    )
    return watch, told


def test_a_watched_stage_ends_as_it_was_at_its_best_look(tmp_path):
    path, model = tmp_path / "a.safetensors", Line()
    watch, told = watching(model, [1, 2, 9, 3, 4, 5, 6, 7, 8, 8.5])
    lines = train(model, parts_of(model), STAGE, seed=0, state_path=path, watch=watch)
    assert [line["step"] for line in lines] == list(range(4, 41, 4)) == told[-1]

    path, short = tmp_path / "b.safetensors", Line()
    with pytest.raises(KeyboardInterrupt):
        train(short, cut_off(short, 12), STAGE, seed=0, state_path=path)
    assert torch.equal(weights_of(model), weights_of(short))
    assert [p.name for p in tmp_path.glob("a-best-*")] == ["a-best-12.safetensors"]


def test_it_ends_early_once_no_look_was_better_for_long_enough(tmp_path):
    path, model = tmp_path / "a.safetensors", Line()
    watch, _ = watching(model, [1, 3, 2, 2, 2, 9], patience=3)
    lines = train(model, parts_of(model), STAGE, seed=0, state_path=path, watch=watch)
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20]
    again = Line()
    watch, _ = watching(again, [], patience=3)
    same = train(again, cut_off(again, 0), STAGE, seed=0, state_path=path, watch=watch)
    assert same == lines
    assert torch.equal(weights_of(again), weights_of(model))


@pytest.mark.parametrize("at", [9, 13, 30])
def test_looks_of_a_training_that_was_cut_off_are_those_of_one_that_was_not(tmp_path, at):
    scores = [1, 5, 2, 7, 3, 4, 7, 1, 2, 3]
    whole = Line()
    watch, _ = watching(whole, scores)
    lines = train(
        whole, parts_of(whole), STAGE, seed=0, state_path=tmp_path / "a.safetensors", watch=watch
    )
    path, cut = tmp_path / "b.safetensors", Line()
    watch, _ = watching(cut, scores)
    with pytest.raises(KeyboardInterrupt):
        train(cut, cut_off(cut, at), STAGE, seed=0, state_path=path, watch=watch)
    resumed = Line()
    watch, told = watching(resumed, scores[at // 4 :])
    same = train(resumed, parts_of(resumed), STAGE, seed=0, state_path=path, watch=watch)
    assert same == lines
    assert told[0] == list(range(4, 4 * (at // 4 + 1) + 1, 4))
    assert torch.equal(weights_of(resumed), weights_of(whole))


def test_a_best_look_whose_state_was_not_saved_any_more_is_looked_at_again(tmp_path, monkeypatch):
    path, cut, save = tmp_path / "b.safetensors", Line(), training.save_state

    def save_until_16(*given):
        if given[4] == 16:
            raise KeyboardInterrupt
        save(*given)

    watch, _ = watching(cut, [1, 5, 2, 7])
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_state", save_until_16)
        with pytest.raises(KeyboardInterrupt):
            train(cut, parts_of(cut), STAGE, seed=0, state_path=path, watch=watch)
    best = {p.name for p in tmp_path.glob("b-best-*")}
    assert best == {"b-best-8.safetensors", "b-best-16.safetensors"}
    resumed = Line()
    # Had the later look come out worse this time, the earlier one's weights are there still.
    watch, _ = watching(resumed, [0] * 7)
    lines = train(resumed, parts_of(resumed), STAGE, seed=0, state_path=path, watch=watch)
    assert [line["score"] for line in lines] == [1, 5, 2, *[0] * 7]
    assert {p.name for p in tmp_path.glob("b-best-*")} == {"b-best-8.safetensors"}
    at_8 = Line()
    with pytest.raises(KeyboardInterrupt):
        train(at_8, cut_off(at_8, 8), STAGE, seed=0, state_path=tmp_path / "c.safetensors")
    assert torch.equal(weights_of(resumed), weights_of(at_8))


def test_a_loss_that_is_no_number_ends_the_training_and_is_not_saved(tmp_path):
    path, model = tmp_path / "a.safetensors", Line()

    def parts(rng):
        yield model.matrix.sum() * torch.nan

    with pytest.raises(InvalidRequest, match=r"planner\.lr: the loss of line is nan at step 1"):
        train(model, parts, STAGE, seed=0, state_path=path)
    assert not path.exists()


def test_tensorboard_shows_each_step_once_though_the_run_was_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY", 10)
    path, cut, events = tmp_path / "a.safetensors", Line(), tmp_path / "events"
    with pytest.raises(KeyboardInterrupt):
        train(cut, cut_off(cut, 25), STAGE, seed=0, state_path=path, events=events)
    resumed = Line()
    watch, _ = watching(resumed, range(10))
    train(resumed, parts_of(resumed), STAGE, seed=0, state_path=path, watch=watch, events=events)
    shown = EventAccumulator(str(events)).Reload()
    assert [e.step for e in shown.Scalars("loss")] == list(range(1, 41))
    assert [e.step for e in shown.Scalars("score")] == list(range(24, 41, 4))


def test_the_caller_s_randomness_is_left_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    model = Line()
    train(model, parts_of(model), STAGE, seed=0, state_path=tmp_path / "a.safetensors")
    assert torch.equal(torch.rand(1), expected)
    assert np.isfinite(weights_of(model).numpy()).all()


def test_muon_takes_matrices_and_adamw_what_is_no_matrix_or_a_table():
    model = build_embedded([f" {w}" for w in ["abc", "def", "ghi"]] * 50, 300, seed=0).model
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = build_optimizers(model, Stage("s", 1, 10, 0.1, muon_lr=0.2))
    of = [{names[id(p)] for g in o.param_groups for p in g["params"]} for o in (muon, adamw)]
    assert of[0] | of[1] == set(names.values())
    assert not of[0] & of[1]
    assert {g["lr"] for g in muon.param_groups} == {0.2}
    assert {g["lr"] for g in adamw.param_groups} == {0.1}
    assert any("q_proj" in name for name in of[0])
    tables = {n for n in names.values() if "embed" in n and "patch" not in n}
    assert len(tables) == 2
    assert tables <= of[1]
    (alone,) = build_optimizers(model, Stage("s", 1, 10, 0.1))
    assert isinstance(alone, torch.optim.AdamW)


def test_a_step_that_does_not_fit_the_memory_is_told_with_the_way_out(tmp_path):
    model = Line()

    def too_large(rng):
        yield model.matrix.sum()
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    with pytest.raises(InvalidRequest, match=r"planner\.accumulate: .*2 GiB.*checkpointing"):
        train(model, too_large, STAGE, seed=0, state_path=tmp_path / "state.safetensors")
