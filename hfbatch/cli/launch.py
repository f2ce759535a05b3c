"""`python -m hfbatch.cli.launch rayjob.yaml`: what the pod of a scheduled Kubernetes Job runs; nothing for people."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from hfbatch.cli import ending
from hfbatch.launch import RayJobs, launch


def main(file: str) -> NoReturn:
    """Make or find the RayJob that `file` describes, follow it, and end with the exit code of its hfbatch."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the first process of a pod has no default
    try:
        job, uid = os.environ.get("JOB_NAME", ""), os.environ.get("JOB_UID", "")
        code = launch(Path(file).read_text(encoding="utf-8"), job, uid, RayJobs.here(os.environ), ending.say)
    except Exception as error:
        code = ending.fail(error, as_json=False)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
