"""What the README shows is what there is."""

import ast
import re
from pathlib import Path

import pytest
import yaml

import hfbatch
from hfbatch.cli import app
from hfbatch.load import load_job

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"no {language} block"
    return found


def test_the_job_on_the_first_screen_is_the_quickstart():
    assert yaml.safe_load(blocks("yaml")[0]) == yaml.safe_load((ROOT / "jobs" / "quickstart.yaml").read_text())


def test_python_blocks_use_names_that_exist():
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hfbatch":
                assert hasattr(hfbatch, node.attr)


@pytest.mark.parametrize("line", re.findall(r"^\$ hfbatch (\S+[^\n#]*)", README, re.MULTILINE))
def test_commands_and_options_exist(line):
    words = line.split()
    command = {each.name or each.callback.__name__.rstrip("_"): each for each in app.registered_commands}[words[0]]
    text = " ".join(str(each) for each in command.callback.__annotations__.values())
    for option in (word for word in words if word.startswith("-")):
        assert option.lstrip("-").replace("-", "_") in text + str(command.callback.__code__.co_varnames)


def test_the_mistake_is_told_as_shown(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)
    text = "name: reviews\ntask: text-classification\nmodel:\n  id: a/b\n  revison: main\n"
    Path("jobs/reviews.yaml").write_text(text + "input: {path: x}\noutput: {path: y}\n")
    with pytest.raises(hfbatch.SpecError) as raised:
        load_job("jobs/reviews.yaml")
    assert str(raised.value) in README


def test_exit_codes_in_the_table_are_those_of_the_errors():
    from hfbatch import errors

    listed = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for code in cell.split(",")}
    codes = {each.exit_code for each in vars(errors).values() if isinstance(getattr(each, "exit_code", None), int)}
    assert codes | {0, 130, 143} == listed


def test_every_linked_file_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
