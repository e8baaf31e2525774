import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uxnet.errors import CheckpointError
from uxnet.events import Note
from uxnet.io.records import read_records
from uxnet.model.file import read_model
from uxnet.recipe import load_recipe, other_keys, with_overrides
from uxnet.training import budget
from uxnet.training.budget import steps_within
from uxnet.training.run import train


@given(st.floats(0.1, 1e5), st.floats(1e-3, 100), st.floats(0, 1000), st.integers(1, 1000))
def test_the_most_steps_that_fit_with_their_validations(seconds, a_step, a_validation, every):
    def needed(n):
        return n * a_step + -(-n // every) * a_validation

    steps = steps_within(seconds, a_step, a_validation, every)
    assert steps == 1 or needed(steps) <= seconds
    # One validation more may be what does not fit.
    assert needed(steps + every) > seconds * (1 - 1e-9)


def test_hours_become_steps_once(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    """The number is measured before the first step, kept, and stands in the model; the weights are those of a run of so many steps."""
    recipe = with_overrides(tiny_recipe, ["training.hours=0.002", "training.validate_every=1000"])
    events, out = [], tmp_path / "run"
    # A step that takes 0.3 s makes the number small, whatever machine this is.
    real = budget._seconds_a_step
    monkeypatch.setattr(budget, "_seconds_a_step", lambda *arguments: max(0.3, real(*arguments)))
    began = time.monotonic()
    train(tiny_dataset, recipe, out, cache=tmp_path / "cache", device="cpu", report=events.append)
    assert time.monotonic() - began < 120
    kept = json.loads((out / "budget.json").read_text())
    assert 1 <= kept["steps"] <= 0.002 * 3600 / 0.3
    assert len([r for r in read_records(out / "metrics.jsonl") if r["kind"] == "step"]) == kept["steps"]
    assert read_model(out / "model.uxnet").recipe.stages[0].training.steps == kept["steps"]
    assert any(f"0.002 h are {kept['steps']} steps" in e.message for e in events if isinstance(e, Note))
    assert other_keys(load_recipe(out / "recipe.toml"), recipe) == ""
    assert not [p for p in out.iterdir() if p.name.startswith(".budget")]

    # Measured no second time, and nothing else is trained.
    monkeypatch.setattr(budget, "_seconds_a_step", lambda *_: pytest.fail("measured again"))
    (out / "model.uxnet").unlink()
    train(tiny_dataset, recipe, out, cache=tmp_path / "cache", device="cpu", resume=True)
    assert len([r for r in read_records(out / "metrics.jsonl") if r["kind"] == "step"]) == kept["steps"]
    with pytest.raises(CheckpointError, match="another recipe"):
        train(tiny_dataset, with_overrides(recipe, ["training.hours=1"]), out, cache=tmp_path / "cache", device="cpu", resume=True)


def test_measuring_leaves_the_weights_alone(tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "steps_within", lambda *_: 3)
    first = tmp_path / "first"
    train(tiny_dataset, with_overrides(tiny_recipe, ["training.hours=1"]), first, cache=tmp_path / "cache", device="cpu")
    plain = tmp_path / "plain"
    train(tiny_dataset, with_overrides(tiny_recipe, ["training.steps=3"]), plain, cache=tmp_path / "cache", device="cpu")
    from uxnet.training.checkpoint import load_weights_file

    a, b = (load_weights_file(run / "checkpoints" / "last.safetensors") for run in (first, plain))
    assert all(torch.equal(a[key], b[key]) for key in b)
