"""The hfbatch command for tests: in this process, in one of its own, on a terminal of a given width."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from hfbatch import cli, errors
from hfbatch.errors import HfbatchError


def command_in_this_process(capsys):
    """A function: ("check", path) -> (exit code, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(each) for each in arguments])
        written = capsys.readouterr()
        return ended.value.code, written.out, written.err

    return call


def start(*arguments, **options):
    return subprocess.Popen([sys.executable, "-m", "hfbatch.cli", *map(str, arguments)], **options)


def in_a_process(*arguments, cwd=None):
    with start(*arguments, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def on_a_terminal(columns, *arguments):
    """(exit code, what stood on a terminal so wide)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    with start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm"}) as process:
        os.close(theirs)
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # Linux says so when the other end closes
            pass
    os.close(ours)
    return process.returncode, seen.decode().replace("\r\n", "\n")


def assert_tidy(text):
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "\x1b" not in text


def kinds_of_errors():
    kinds = [HfbatchError]
    for kind in kinds:  # grows while it is read
        kinds += kind.__subclasses__()
    return [kind for kind in kinds if kind.__module__ == errors.__name__]
