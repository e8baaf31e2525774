"""What the README shows works as it stands there."""

import re
import shutil
from pathlib import Path

from uxnet.recipe import recipe_to_toml

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_five_lines_of_python(tmp_path, monkeypatch, tiny_dataset, tiny_recipe):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_dataset, "Task04_Hippocampus")
    shutil.copy(next((tiny_dataset / "imagesTr").iterdir()), "scan.nii.gz")
    Path("tiny.toml").write_text(recipe_to_toml(tiny_recipe))
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    exec(code.replace('"hippocampus"', '"tiny.toml"'), {})
    assert Path("labels.nii.gz").is_file()


def test_the_commands_are_targets_and_verbs():
    from uxnet.cli.main import VERBS

    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    shown = set(re.findall(r"^uxnet (\w+)", README, flags=re.MULTILINE))
    assert shown <= set(VERBS)
    assert shown


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (Path(__file__).parents[1] / link).exists(), link
