"""Run by a Python that has Airflow: loads a dags folder as Airflow does, runs its operator, tells what came of it.

    PYTHON airflow_check.py DAGS PROGRAM

PROGRAM ends with the exit code that stands in the file `code` beside it. The last line of stdout is JSON.
"""

import json
import sys
from pathlib import Path

try:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.sdk.execution_time import macros
except ImportError:  # Airflow 2
    from airflow import macros
    from airflow.models import DagBag

CODES = (0, 2, 3, 4, 5, 6, 70, 74, 75, 77, 78, 130, 143)


def main(folder, program):
    bag = DagBag(dag_folder=folder)
    assert not bag.import_errors, bag.import_errors
    (dag,) = bag.dags.values()
    (task,) = dag.tasks
    outcomes = {}
    command = task.render_template(task.command, {"ds": "2026-11-20", "macros": macros})
    for code in CODES:
        Path(program).with_name("code").write_text(str(code))
        task.command = [program]
        try:
            task.execute({})
            outcomes[code] = "success"
        except Exception as error:
            outcomes[code] = type(error).__name__
    about = [dag.dag_id, dag.catchup, dag.max_active_runs, str(zone_of(dag.timetable))]
    sys.stdout.write(json.dumps({"dag": about, "command": command, "outcomes": outcomes}) + "\n")


def zone_of(timetable):
    zone = vars(timetable).get("timezone") or vars(timetable)["_timezone"]
    return getattr(zone, "name", zone)


if __name__ == "__main__":
    main(*sys.argv[1:])
