"""How a command ends: exit codes, words on stderr, one JSON document on stdout, silence for a reader that left."""

import json
import os
import subprocess

import pytest

from hfbatch.cli import root
from hfbatch.errors import Interrupted, Problem, SpecError
from tests.console import command_in_this_process, kinds_of_errors, start

TOLD = "x.yaml:1:1: task: is odd\n  fix: mend it\n"


@pytest.fixture
def hfbatch(capsys):
    return command_in_this_process(capsys)


@pytest.fixture
def failing(monkeypatch):
    """failing(error) makes `hfbatch check` meet that error."""

    def arrange(error):
        def load(*_args, **_options):
            raise error

        monkeypatch.setattr(root, "load_job", load)

    return arrange


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run"], "Missing argument 'JOB'"),
        (["run", "job.yaml", "--nope"], "No such option: --nope"),
        (["run", "job.yaml", "--head", "-1"], "--head"),
        (["errors", "out", "--limit", "-1"], "--limit"),
        (["verify", "out", "--seed", "x"], "--seed"),
        (["status", "a", "b"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(hfbatch, arguments, message):
    code, out, err = hfbatch(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Usage: hfbatch" in err
    code, out, err = hfbatch(*arguments, "--json")
    found = json.loads(out)
    assert (code, found["exit_code"]) == (2, 2)
    assert message in found["error"]["message"]
    assert message in err


@pytest.mark.parametrize("kind", kinds_of_errors(), ids=lambda kind: kind.__name__)
def test_every_expected_failure_ends_with_its_exit_code_and_its_own_words(hfbatch, failing, kind):
    if kind is SpecError:
        error, code, text = SpecError([Problem("x.yaml:1:1", "task", "is odd", "mend it")]), 2, TOLD
    elif kind is Interrupted:
        error, code, text = Interrupted(15), 143, f"{Interrupted(15)}\n"
    else:
        error, code, text = kind("what happened"), kind.exit_code, "what happened\n"
    failing(error)
    assert hfbatch("check", "job.yaml") == (code, "", text)
    ended, out, err = hfbatch("check", "job.yaml", "--json")
    found = json.loads(out)
    assert (ended, err, found["exit_code"]) == (code, text, code)
    assert (found["error"]["type"], found["error"]["message"]) == (kind.__name__, text.rstrip("\n"))


def test_ctrl_c_ends_with_130_and_says_that_a_rerun_resumes(hfbatch, failing):
    failing(KeyboardInterrupt())
    code, out, err = hfbatch("check", "job.yaml")
    assert (code, out, err) == (130, "", f"{Interrupted(2)}\n")
    code, out, _ = hfbatch("check", "job.yaml", "--json")
    assert (code, json.loads(out)["exit_code"]) == (130, 130)


def test_what_nobody_foresaw_ends_with_70_its_traceback_and_a_line_that_says_it_is_a_bug(hfbatch, failing):
    failing(ZeroDivisionError("by zero"))
    code, out, err = hfbatch("check", "job.yaml")
    assert (code, out) == (70, "")
    assert err.startswith("Traceback")
    last = "hfbatch: this is a bug in hfbatch: ZeroDivisionError: by zero; please report it with the lines above"
    assert err.splitlines()[-1] == last
    code, out, _ = hfbatch("check", "job.yaml", "--json")
    assert (code, json.loads(out)["error"]["message"]) == (70, last)


def test_a_failure_of_the_system_ends_with_74(hfbatch, failing):
    failing(OSError(28, "No space left on device", "/tmp/x"))
    code, _, err = hfbatch("check", "job.yaml")
    assert code == 74
    assert err.splitlines()[-1].startswith("hfbatch: reading or writing failed: OSError: [Errno 28] No space left")


@pytest.mark.parametrize("arguments", [["tasks"], ["schema"], ["schema", "--json"], ["tasks", "nope", "--json"]])
def test_a_reader_that_goes_away_ends_the_command_in_silence(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with start(*arguments, stdout=writing, stderr=subprocess.PIPE, text=True) as process:
        os.close(writing)
        _, err = process.communicate()
    assert (process.returncode, err) == (141, "")
