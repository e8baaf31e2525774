"""The figure of transfer: cross-validations that differ in their budgets, from scratch and fine-tuned."""

import re

import numpy as np
import pytest
from commands import run
from made_records import made_record, write_records

from uxnet.errors import InputError
from uxnet.paper.figures import network_titles
from uxnet.paper.records import settings_text
from uxnet.paper.tables import paper_table, read_trials, transfer_figure
from uxnet.paper.text import to_markdown
from uxnet.paper.transfer import _tested

INIT = {"model": "model.uxnet", "weights_sha256": ["ab" * 32], "recipe": "r", "dataset": "Synthetic"}
ENTRIES = {"scratch": (0.5, {}), "tuned": (0.7, {"init": INIT})}


def folder(root, steps, entries=ENTRIES, **more):
    """Two folds of three cases each; longer trainings are better."""
    made = []
    for name, (dice, extra) in entries.items():
        for fold in (0, 1):
            dices = {f"c{fold}{n}": dice + steps / 10_000 + n / 100 for n in range(3)}
            made.append(made_record(name, fold, dices, network="uxnet", budget={"steps": [steps]}, **extra, **more))
    return write_records(root, made)


def trials_of(*folders):
    return read_trials({"": folders})


def test_both_curves_over_the_budget_and_on_the_way(tmp_path):
    trials = trials_of(*(folder(tmp_path / str(steps), steps) for steps in (800, 50, 200)))
    paths = transfer_figure(tmp_path / "out", trials, note="Made up.")
    assert [path.name for path in paths] == ["transfer.png", "transfer.svg"]
    texts = re.findall(r"<!-- (.*?) -->", paths[1].read_text(encoding="utf-8"))
    assert "steps of training" in texts
    assert "a) test cases, a training a point" in texts
    assert "b) validation cases during 800 steps" in texts
    # The last point is the mean over folds of the longest training: 0.5 and 0.7, plus 0.08 for its steps and 0.01 for its cases.
    assert {"scratch  0.590", "tuned  0.790"} <= set(texts)


def test_one_budget_is_a_point(tmp_path):
    assert transfer_figure(tmp_path / "out", trials_of(folder(tmp_path / "50", 50)))[0].is_file()


def test_folds_without_a_budget_are_left_out_and_named(tmp_path):
    """A line through what two of its folds were not trained for would be made up."""
    folders = {steps: folder(tmp_path / str(steps), steps) for steps in (50, 200, 800)}
    (folders[200] / "records/scratch-fold1.json").unlink()
    for fold in (0, 1):
        (folders[200] / f"records/tuned-fold{fold}.json").unlink()
    tested, said = _tested(trials_of(*folders.values()), "steps")
    assert tested["scratch"] == [pytest.approx(np.array([(n, 0.51 + n / 10_000) for n in folders]))]
    assert [[x for x, _ in fold] for fold in tested["tuned"]] == [[50, 800], [50, 800]]
    assert said == [
        "scratch: folds left out, since they lack trainings (of so many steps): 1 (lacks 200).",
        "tuned: no training of 200 steps.",
    ]
    paths = transfer_figure(tmp_path / "out", trials_of(*folders.values()))
    assert any("1 (lacks 200)" in text for text in re.findall(r"<!-- (.*?) -->", paths[1].read_text(encoding="utf-8"), re.DOTALL))
    (folders[50] / "records/scratch-fold0.json").unlink()
    with pytest.raises(InputError, match="scratch: no fold was trained with each of 50, 200, 800 steps"):
        transfer_figure(tmp_path, trials_of(*folders.values()))


def test_what_does_not_belong_together_is_refused(tmp_path):
    one = folder(tmp_path / "50", 50)
    other = folder(tmp_path / "other", 200, recipe_sha256="9" * 64, dataset_sha256="8" * 64)
    budget = {"core_seconds": 60.0, "threads": 1, "validations": "included"}
    timed = write_records(tmp_path / "timed", [made_record("scratch", 0, {"a": 0.5}, network="uxnet", budget=budget)])
    fresh = folder(tmp_path / "fresh", 200, {"tuned": (0.7, {})})
    strict = folder(tmp_path / "strict", 50, evaluation={"tolerance_mm": 0.5, "empty": "skip", "seconds_a_case": 1.0})
    for folders, said in (
        ((), "needs records"),
        ((one, other), "differ in recipe, dataset"),
        ((one, timed), "kind of budget"),
        ((one, fresh), "tuned: under two budgets"),
        ((one, strict), "two of A, B have the same budget"),
        ((one, folder(tmp_path / "again", 50, {"scratch": (0.5, {"init": INIT})})), "two records of this name differ in init"),
    ):
        with pytest.raises(InputError, match=said):
            transfer_figure(tmp_path, trials_of(*folders))


def test_tables_and_curves_say_what_a_network_began_with(tmp_path):
    (trial,) = trials_of(folder(tmp_path / "50", 50))
    assert "begins with fresh weights, tuned with those of model.uxnet." in trial.terms()
    assert [settings_text(s) for s in trial.scores] == [
        "size = narrow",
        "size = narrow; begins with model.uxnet (abababababab, trained on Synthetic)",
    ]
    assert network_titles(trial.scores) == {"scratch": "scratch", "tuned": "tuned"}
    assert "with which weights ours began" in to_markdown(paper_table("table2", (trial,)))
    (alone,) = trials_of(folder(tmp_path / "alone", 50, {"tuned": ENTRIES["tuned"]}))
    assert network_titles(alone.scores) == {"tuned": "tuned"}
    assert "which began tuned with those of model.uxnet." in alone.terms()


def test_the_command(tmp_path, capsys):
    records = [word for steps in (50, 200) for word in ("--records", folder(tmp_path / str(steps), steps))]
    assert run("reproduce", "transfer", *records, "-o", tmp_path / "out", "--band", "interval") == 0
    assert "written" in capsys.readouterr().out
    assert (tmp_path / "out/transfer.png").read_bytes().startswith(b"\x89PNG")
    assert run("reproduce", "transfer", *records) == 2
    assert "transfer.png" in capsys.readouterr().err
