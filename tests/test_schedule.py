"""`hfbatch schedule`: what it writes is read by what will read it, and runs the command that was meant."""

import ast
import json
import os
import shutil
import subprocess
import sys
import types
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from crontab import CronTab

from hfbatch.kuberay import kubernetes_name, plan_workers
from hfbatch.load import load_machine
from hfbatch.schedule import NO_RETRY
from tests import kubernetes_types
from tests.console import assert_tidy, command_in_this_process

ROOT = Path(__file__).parent.parent
JOB = """\
name: Nightly.reviews
task: text-classification
model: {id: owner/name}
input: {path: "s3://lab/reviews/day=${yesterday}/*.parquet"}
output: {path: s3://lab/labels}
"""
MACHINE = "address: auto\nactors: {min: 3, max: 9}\ngpus_per_actor: 0.5\ncpus_per_actor: 1.5\ngrace_s: 40.5\n"
ODD = [
    "--var", "x=${today} it's 100% \"odd\" \\%", "--set", "input.where=stars >= 3 and lang == 'en'",
]  # fmt: skip


@pytest.fixture
def hfbatch(capsys):
    return command_in_this_process(capsys)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of the job, one with a space and a percent sign in its name."""
    here = tmp_path / "50% off"
    here.mkdir()
    (here / "job.yaml").write_text(JOB)
    (here / "k8s.yaml").write_text(MACHINE)
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def fake(tmp_path):
    """A program that notes how it was called and ends with the code in the file `code`."""
    program = tmp_path / "hfbatch"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nfrom pathlib import Path\nhere = Path({str(tmp_path)!r})\n"
        "(here / 'called.json').write_text(json.dumps([os.getcwd(), sys.argv[1:]]))\nprint('done')\n"
        "sys.exit(int((here / 'code').read_text()))\n"
    )
    program.chmod(0o755)
    (tmp_path / "code").write_text("0")
    return program


def called(fake):
    return json.loads(fake.with_name("called.json").read_text())


def as_cron_does(command):
    """What Vixie cron hands to the shell: a backslash keeps a percent sign, a bare one ends the command."""
    taken, escaped = "", False
    for sign in command:
        if sign == "%" and escaped:
            taken = taken[:-1]
        elif sign == "%":
            return taken
        taken += sign
        escaped = sign == "\\" and not escaped
    return taken


def make(hfbatch, to, *options):
    code, out, err = hfbatch("schedule", "job.yaml", "--to", to, *options)
    assert code == 0, err
    return out


def test_the_crontab_line_runs_the_command_that_was_meant(hfbatch, folder, fake):
    text = make(hfbatch, "cron", "--at", "30 1 * * MON-FRI", "--on", "k8s.yaml", *ODD)
    assert_tidy(text)
    (entry,) = CronTab(tab=text)
    assert entry.is_valid()
    assert str(entry.slices) == "30 1 * * MON-FRI"
    ours = str(Path(sys.executable).with_name("hfbatch")).replace("%", r"\%")
    written = text.splitlines()[-1].split(maxsplit=5)[5]
    command = as_cron_does(written.replace(ours, str(fake), 1))
    assert entry.command.replace(ours, str(fake), 1) == command  # the library's reading of % and ours
    assert subprocess.run(["/bin/sh", "-c", command], cwd="/", env={}).returncode == 0
    run = ["run", str(folder / "job.yaml"), "--on", str(folder / "k8s.yaml"), *ODD]
    assert called(fake) == [str(folder), run]
    assert (folder / "Nightly.reviews.log").read_text() == "done\n"


@pytest.mark.skipif(shutil.which("crontab") is None, reason="no cron is installed")
def test_cron_itself_takes_the_crontab(hfbatch, folder, tmp_path):
    file = tmp_path / "tab"
    file.write_text(make(hfbatch, "cron", "--at", "@daily", "--tz", "Europe/Berlin", *ODD))
    tested = dry_run(file)
    assert tested.returncode == 0, tested.stderr
    file.write_text("0 26 * * * true\n")
    assert dry_run(file).returncode != 0


def dry_run(file):
    """`crontab -T` of cronie, `crontab -n` of Debian."""
    tested = subprocess.run(["crontab", "-T", str(file)], capture_output=True, text=True)
    if "invalid option" in tested.stderr:
        tested = subprocess.run(["crontab", "-n", str(file)], capture_output=True, text=True)
    return tested


def test_a_time_zone_stands_above_the_line_and_its_limits_are_told(hfbatch, folder):
    code, out, err = hfbatch("schedule", "job.yaml", "--to", "cron", "--at", "0 2 * * *", "--tz", "Europe/Berlin")
    assert code == 0
    (entry,) = CronTab(tab=out)
    assert entry.env["CRON_TZ"] == "Europe/Berlin"
    assert "the cron of Debian and Ubuntu goes by the machine's clock" in err
    assert "CRON_TZ" not in make(hfbatch, "cron", "--at", "0 2 * * *")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--var", "x=a\nb"], "no line break"),
        (["--var", "x=" + "a" * 1000], "longer than cron takes (998)"),
        (["--set", "input.path=https://u:secret@example.org/x.parquet"], "credentials"),
        (["--var", "x=https://example.org/x?X-Amz-Signature=secret"], "credentials"),
    ],
)
def test_what_must_not_stand_in_a_crontab_is_refused(hfbatch, folder, options, problem):
    code, out, err = hfbatch("schedule", "job.yaml", "--to", "cron", "--at", "@daily", *options)
    assert (code, out) == (2, "")
    assert problem in err
    assert "secret" not in err


@pytest.fixture
def manifests(hfbatch, folder):
    """{kind: document} of what kuberay gets, each held against its types, the RayJob in the ConfigMap too."""

    def read(*options):
        text = make(hfbatch, "kuberay", "--on", "k8s.yaml", "--image", "registry/hfbatch:1", *options)
        documents = list(yaml.safe_load_all(text))
        files = next(each["data"] for each in documents if each["kind"] == "ConfigMap")
        documents.append(yaml.safe_load(files["rayjob.yaml"].replace("$(JOB_NAME)", "n-1").replace("$(JOB_UID)", "u")))
        for document in documents:
            kubernetes_types.check(document)
        return {each["kind"]: each for each in documents}

    return read


def test_every_manifest_is_what_kubernetes_and_kuberay_take(hfbatch, manifests):
    assert_tidy(make(hfbatch, "kuberay", "--on", "k8s.yaml", "--image", "i"))
    once, nightly = manifests(), manifests("--at", "0 2 * * *", "--tz", "Europe/Berlin")
    assert set(once) == {"ConfigMap", "ServiceAccount", "Role", "RoleBinding", "Job", "RayJob"}
    assert set(nightly) == (set(once) - {"Job"}) | {"CronJob"}
    cron = nightly["CronJob"]["spec"]
    assert (cron["schedule"], cron["timeZone"], cron["concurrencyPolicy"]) == ("0 2 * * *", "Europe/Berlin", "Forbid")
    assert cron["jobTemplate"]["spec"] == once["Job"]["spec"]
    assert nightly["RayJob"] == once["RayJob"]
    assert manifests("--at", "@daily")["CronJob"]["spec"]["timeZone"] == "Etc/UTC"


def test_a_field_that_kuberay_does_not_know_is_found(manifests):
    rayjob = manifests()["RayJob"]
    for place in (rayjob, rayjob["spec"], rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]):
        place["podFailurePolicy"] = {}
        with pytest.raises((AssertionError, ValueError)):
            kubernetes_types.check(rayjob)
        del place["podFailurePolicy"]
    kubernetes_types.check(rayjob)


def test_only_exit_codes_that_a_rerun_helps_are_tried_again(manifests):
    assert NO_RETRY == (2, 3, 5, 6, 9, 77, 78)
    found = manifests()
    job, spec = found["Job"]["spec"], found["RayJob"]["spec"]
    moved, final = job["podFailurePolicy"]["rules"]
    assert (moved["action"], moved["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (final["action"], final["onExitCodes"]["values"]) == ("FailJob", list(NO_RETRY))
    (container,) = job["template"]["spec"]["containers"]
    assert final["onExitCodes"]["containerName"] == container["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes takes a podFailurePolicy with no other
    assert (job["backoffLimit"], spec["backoffLimit"]) == (3, 0)


def test_the_pods_have_what_the_machine_file_says_and_time_to_drain(manifests):
    found = manifests("--memory", "24Gi", "--secret", "HF_TOKEN=hub/token")
    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 5)  # two actors share a GPU
    pods = [part["template"]["spec"] for part in (cluster["headGroupSpec"], group)]
    (head,), (worker,) = (pod["containers"] for pod in pods)
    assert worker["resources"]["limits"] == {"cpu": 5, "memory": "24Gi", "nvidia.com/gpu": 1}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for pod, container in zip(pods, (head, worker), strict=True):
        assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "46"]
        assert pod["terminationGracePeriodSeconds"] == 76
        secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
        assert secret in container["env"]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "46"} in head["env"]


@pytest.mark.parametrize(
    ("machine", "workers"),
    [
        ({"actors": 1, "gpus_per_actor": 0}, (0, 2, 1, 1)),
        ({"actors": 4, "gpus_per_actor": 0, "cpus_per_actor": 7.5}, (0, 9, 4, 4)),
        ({"actors": {"max": 8}, "gpus_per_actor": 1}, (1, 3, 1, 8)),
        ({"actors": 8, "gpus_per_actor": 1, "cpu_steps": "actor"}, (1, 2, 8, 8)),
        ({"actors": 8, "gpus_per_actor": 0.3}, (1, 5, 3, 3)),
        ({"actors": 2, "gpus_per_actor": 4}, (4, 3, 2, 2)),
    ],
)
def test_actors_are_put_into_pods_of_whole_gpus(machine, workers):
    found = plan_workers(load_machine(machine))
    assert (found.gpus, found.cpus, found.least, found.most) == workers


def test_the_head_pod_runs_the_command_that_was_meant(manifests, folder, fake, tmp_path):
    found = manifests(*ODD)
    mounted = tmp_path / "etc"
    mounted.mkdir()
    for name, text in found["ConfigMap"]["data"].items():
        (mounted / name).write_text(text.replace("/etc/hfbatch", str(mounted)))
    entrypoint = found["RayJob"]["spec"]["entrypoint"].replace("/etc/hfbatch", str(mounted))
    path = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    assert subprocess.run(entrypoint, shell=True, env=path).returncode == 0
    run = ["run", f"{mounted}/job.yaml", "--on", f"{mounted}/machine.yaml", *ODD]
    assert called(fake)[1] == [*run, "--set", "name=Nightly.reviews", "--set", "address=auto"]
    assert (mounted / "job.yaml").read_text() == JOB
    assert (mounted / "machine.yaml").read_text() == MACHINE


@pytest.mark.parametrize(
    "text", ["  # indented\n", "\n\n", "# \u00a0 é 😀\n", "vars: {x: 'a\u2028b'}\n", "# tab\there \n\n  \n# end", "# x"]
)
def test_a_file_comes_out_of_the_configmap_as_it_went_in(manifests, folder, text):
    written = text + "\n" + JOB
    (folder / "job.yaml").write_text(written)
    data = manifests()["ConfigMap"]["data"]
    assert data["job.yaml"].rstrip("\n") == written.rstrip("\n")
    assert data["machine.yaml"] == MACHINE


def test_what_no_pod_could_use_is_told_at_once(hfbatch, folder):
    gates = "gates: {golden: {path: golden.csv, key: id, min_f1: 0.9}}\n"
    job = JOB.replace("s3://lab/labels", "out/labels").replace("owner/name", "./model")
    (folder / "job.yaml").write_text(job + gates)
    code, out, err = hfbatch("schedule", "job.yaml", "--to", "kuberay", "--memory", "lots")
    assert (code, out) == (2, "")
    for told in (
        "--image: no image is named",
        "--memory lots: is not an amount of memory",
        "output.path: 'out/labels' is a path in this folder, which no pod has",
        "model.id: './model' is a path in this folder",
        "gates.golden.path: 'golden.csv' is a path in this folder",
        "gpus_per_actor: auto is settled by what a machine has",
        "fix: write actors: a number, or {min: 1, max: 8}",
    ):
        assert told in err


def test_a_secret_is_named_and_never_given(hfbatch, folder):
    code, _, err = hfbatch("schedule", "job.yaml", "--to", "kuberay", "--secret", "HF_TOKEN=hf_abcdefgh")
    assert code == 2
    assert "--secret HF_TOKEN: is not VARIABLE=NAME/KEY" in err
    assert "hf_abcdefgh" not in err
    (folder / "job.yaml").write_text(JOB.replace("s3://lab/reviews", "https://e.org/x?sig=hf_abcdefgh&x"))
    (folder / "k8s.yaml").write_text(MACHINE)
    options = ["--to", "kuberay", "--on", "k8s.yaml", "--image", "i"]
    code, _, err = hfbatch("schedule", "job.yaml", *options)
    assert (code, "credentials" in err, "hf_abcdefgh" in err) == (2, True, False)


@pytest.mark.parametrize(
    ("job", "name"),
    [("nightly", "nightly"), ("a" * 40, "a" * 40)],
)
def test_a_name_that_kubernetes_takes_stays(job, name):
    assert kubernetes_name(job) == name


def test_other_names_are_made_fit_and_stay_apart():
    jobs = ["Nightly", "nightly.", "nightly_", "1st", "a" * 100, "a" * 99, "x." * 30]
    names = [kubernetes_name(job) for job in jobs]
    assert len({*names, "nightly"}) == len(jobs) + 1
    for name in names:
        assert name.replace("-", "").isalnum()
        assert name == name.lower()
        assert name[0].isalpha()
        assert len(name) <= 40


class FailedForGood(Exception):
    pass


class Failed(Exception):
    pass


@pytest.fixture
def airflow(hfbatch, folder, monkeypatch, fake):
    """(operator, command, DAG) of the file, on stand-ins with what Airflow documents; a slow test has the real one."""

    class Recorded:
        def __init__(self, *given, **named):
            self.given, self.named = given, named

        def __enter__(self):
            dags.append(self)

        def __exit__(self, *_):
            pass

    class Hook:
        def run_command(self, command, env=None, output_encoding="utf-8", cwd=None):
            return types.SimpleNamespace(exit_code=subprocess.run(command, cwd=cwd).returncode)

    dags = []
    there = {
        "airflow.timetables.trigger": {"CronTriggerTimetable": Recorded},
        "airflow.providers.standard.hooks.subprocess": {"SubprocessHook": Hook},
        "airflow.sdk": {"DAG": Recorded, "BaseOperator": Recorded},
        "airflow.sdk.exceptions": {"AirflowException": Failed, "AirflowFailException": FailedForGood},
    }
    for name in {".".join(full.split(".")[:depth]) for full in there for depth in range(1, 6)}:
        module = types.ModuleType(name)
        vars(module).update(there.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)

    def load(*options):
        text = make(hfbatch, "airflow", "--at", "0 2 * * *", *options)
        made = {}
        exec(compile(text, "dag.py", "exec", dont_inherit=True), made)
        words = [word for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) for word in node.keywords]
        (command,) = (ast.literal_eval(word.value) for word in words if word.arg == "command")
        return made["Hfbatch"], command, dags.pop()

    return load


def test_the_dag_runs_the_command_for_the_day_that_airflow_says(airflow, folder):
    _, command, dag = airflow("--on", "k8s.yaml", "--set", "input.limit=5", "--tz", "Europe/Berlin")
    run = ["run", str(folder / "job.yaml"), "--on", str(folder / "k8s.yaml"), "--set", "input.limit=5"]
    assert command[command.index("run") :] == [*run, "--var", "yesterday={{ macros.ds_add(ds, -1) }}"]
    assert (dag.named["dag_id"], dag.named["catchup"], dag.named["max_active_runs"]) == ("Nightly.reviews", False, 1)
    schedule = dag.named["schedule"]
    assert (schedule.given, schedule.named) == (("0 2 * * *",), {"timezone": "Europe/Berlin"})


def test_a_day_that_the_job_uses_is_airflows_unless_it_was_given(airflow, folder):
    (folder / "job.yaml").write_text(JOB.replace("${yesterday}", "${day}") + "vars: {day: 2026-01-01}\n")
    assert airflow()[1][-2:] == ["--var", "day={{ ds }}"]
    assert airflow("--var", "day={{ macros.ds_add(ds, -7) }}")[1][-2:] == ["--var", "day={{ macros.ds_add(ds, -7) }}"]
    (folder / "job.yaml").write_text(JOB.replace("${yesterday}", "*"))
    assert airflow()[1][-2:] == ["run", str(folder / "job.yaml")]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 70, 74, 75, 77, 78, 130, 143])
def test_airflow_is_told_which_exit_codes_are_final(airflow, folder, fake, code):
    fake.with_name("code").write_text(str(code))
    operator = airflow()[0](task_id="run", command=[str(fake), "run"], folder=str(folder))
    if code == 0:
        assert operator.execute({}) is None
        return
    with pytest.raises(FailedForGood if code in NO_RETRY else Failed, match=f"exit code {code}"):
        operator.execute({})


def test_a_file_is_saved_once_and_replaced_only_on_demand(hfbatch, folder):
    arguments = ["schedule", "job.yaml", "--to", "airflow", "--at", "@daily", "--write", "dags/night.py"]
    code, out, err = hfbatch(*arguments)
    assert (code, out) == (0, "dags/night.py: written; put it into Airflow's dags folder: dags/night.py\n")
    assert "At 00:00 every day; for the first time at " in err
    Path("dags/night.py").write_text("mine")
    code, out, err = hfbatch(*arguments)
    assert (code, out) == (2, "")
    assert err == "--write dags/night.py: exists\n  fix: name another file, or replace it with --force\n"
    assert Path("dags/night.py").read_text() == "mine"
    assert hfbatch(*arguments, "--force")[0] == 0
    compile(Path("dags/night.py").read_text(), "night.py", "exec")


def test_json_has_the_text_and_the_first_time(hfbatch, folder):
    at = ["--at", "0 2 * * *", "--tz", "Asia/Tokyo"]
    code, out, _ = hfbatch("schedule", "job.yaml", "--to", "airflow", *at, "--json")
    found = json.loads(out)
    assert (code, found["to"], found["file"]) == (0, "airflow", None)
    first = datetime.fromisoformat(found["first"])
    assert (first.hour, str(first.utcoffset()), first > datetime.now(UTC)) == (2, "9:00:00", True)
    assert found["text"].startswith('"""Nightly.reviews: At 02:00 every day in Asia/Tokyo.')


def test_the_problems_of_files_and_options_come_together(hfbatch, folder):
    (folder / "job.yaml").write_text(JOB.replace("task:", "tsk:"))
    options = ["--to", "cron", "--tz", "UTC", "--image", "x", "--write", "k8s.yaml"]
    code, out, err = hfbatch("schedule", "job.yaml", *options)
    assert (code, out) == (2, "")
    for told in ("tsk: unknown key", "--at: cron needs to know when", "--image, --secret: cron has no pods", "exists"):
        assert told in err


@pytest.mark.slow
@pytest.mark.parametrize("python", os.environ.get("HFBATCH_AIRFLOW", "").split(os.pathsep))
def test_airflow_itself_loads_and_runs_the_dag(hfbatch, folder, fake, tmp_path, python):
    """HFBATCH_AIRFLOW: the Python of an environment with Airflow, or of several."""
    if not python:
        pytest.skip("HFBATCH_AIRFLOW names no Python that has Airflow")
    dags = tmp_path / "dags"
    make(hfbatch, "airflow", "--at", "30 1 * * 1-5", "--tz", "Europe/Berlin", "--write", str(dags / "night.py"))
    check = ROOT / "tests" / "airflow_check.py"
    home = {**os.environ, "AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run([python, str(check), str(dags), str(fake)], env=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dag"] == ["Nightly.reviews", False, 1, "Europe/Berlin"]
    assert found["command"][-1] == "yesterday=2026-11-19"
    assert found["outcomes"] == {
        str(code): "AirflowFailException" if code in NO_RETRY else "AirflowException" if code else "success"
        for code in (0, 2, 3, 4, 5, 6, 70, 74, 75, 77, 78, 130, 143)
    }
