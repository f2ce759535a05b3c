"""What travels to a cluster: the files as they are written; no path of this machine, no secret."""

import json

import pytest

from hfbatch.errors import AccessRefused, SpecError
from hfbatch.load import load_job, load_machine
from hfbatch.parcel import pack

SECRET = "TOPSECRET"
MACHINE = "address: ray://elsewhere:10001   # not used by submit\ngrace_s: 40\nactors: {min: 1, max: 4}\n"


def job_text(**changes):
    written = {
        "model.id": "owner/name",
        "input.path": "s3://bucket/in/*.parquet",
        "output.path": "s3://bucket/out",
        **changes,
    }
    return (
        f"# What it is for\ntask: text-classification\nmodel: {{id: {json.dumps(written['model.id'])}}}\n"
        f"input:\n  path: {json.dumps(written['input.path'])}\n  columns: {{text: body}}\n"
        f"output: {{path: {json.dumps(written['output.path'])}}}\n" + written.get("more", "")
    )


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """packed(changes of the job, options=..., shared=...) -> Parcel."""
    monkeypatch.chdir(tmp_path)

    def make(options=(), shared=(), variables=None, machine=True, **changes):
        job, on = tmp_path / "nightly.yaml", tmp_path / "gpu.yaml"
        job.write_text(job_text(**changes))
        on.write_text(MACHINE)
        spec = load_job(job, vars=variables)
        return pack(spec, load_machine(on if machine else None), job, on if machine else None, options, shared)

    return make


def test_both_files_travel_as_they_are_written_and_nothing_else(packed):
    parcel = packed(options=["--var=day=2026-11-20", "--set=input.limit=5"])
    assert parcel.files == {"job.yaml": job_text(), "machine.yaml": MACHINE}
    assert (parcel.name, parcel.output) == ("nightly", "s3://bucket/out")


def test_the_cluster_runs_the_same_job_under_its_name_on_its_own_ray(packed):
    parcel = packed(options=["--set=address=ray://x:1", "--new-generation"])
    assert parcel.command[:4] == ("run", "job.yaml", "--on", "machine.yaml")
    assert parcel.command[4:] == (
        "--set=address=ray://x:1",
        "--new-generation",
        *("--set", "address=auto", "--set", "name=nightly"),
    )
    assert "--on" not in packed(machine=False).command


def test_a_cancelled_run_gets_its_grace_period_and_time_to_write_down_its_end(packed):
    assert packed().stop_s > 40


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input.path", "data/*.parquet"),
        ("input.path", ["s3://bucket/a.parquet", "data/b.parquet"]),
        ("input.path", "~/data"),
        ("input.path", "zip://a.parquet::data/in.zip"),
        ("output.path", "out/labels"),
        ("output.path", "file://out"),
        ("model.id", "./model"),
    ],
)
def test_a_relative_path_is_refused_wherever_it_is_shared(packed, key, value):
    with pytest.raises(SpecError) as refused:
        packed(shared=["/"], **{key: value})
    (problem,) = refused.value.problems
    assert problem.key.startswith(key)
    assert "nightly.yaml:" in problem.place
    assert "is below a folder of this machine" in problem.message
    assert "--shared" in problem.fix


@pytest.mark.parametrize("key", ["input.path", "output.path", "model.id"])
def test_an_absolute_path_needs_the_word_that_every_node_has_it(packed, key):
    with pytest.raises(SpecError, match=r"may not have[\s\S]*--shared /mnt/data"):
        packed(shared=["/mnt/other", "/mnt/dat"], **{key: "/mnt/data/x"})
    with pytest.raises(SpecError, match="may not have"):
        packed(shared=["/mnt/data"], **{key: "/mnt/data/../x"})
    assert packed(shared=["/mnt/other", "/mnt/data/"], **{key: "/mnt/data/x"})


def test_a_model_folder_that_is_here_is_not_taken_for_a_hub_id(packed, tmp_path):
    assert packed()
    (tmp_path / "owner/name").mkdir(parents=True)
    with pytest.raises(SpecError, match="push the model to the Hub"):
        packed()


def test_the_golden_file_of_the_gates_does_not_travel_either(packed):
    gates = "gates: {golden: {path: %s, key: id, min_accuracy: 0.9}}\n"
    assert packed(more=gates % "s3://bucket/golden.csv")
    with pytest.raises(SpecError, match="is below a folder of this machine") as refused:
        packed(more=gates % "golden.csv")
    assert [problem.key for problem in refused.value.problems] == ["gates.golden.path"]


def test_all_paths_are_named_at_once(packed):
    with pytest.raises(SpecError) as refused:
        packed(**{"input.path": ["a", "/b"], "output.path": "out"}, more="params: {}\n", shared=["/mnt"])
    assert [problem.key for problem in refused.value.problems] == ["input.path.0", "input.path.1", "output.path"]


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"input.path": f"https://me:{SECRET}@host/a.parquet"}, []),
        ({"input.path": ["s3://b/a.parquet", f"https://host/a.parquet?X-Amz-Signature={SECRET}"]}, []),
        ({"input.path": "https://host/a.parquet?${signature}", "more": f"vars: {{signature: 'a={SECRET}'}}\n"}, []),
        ({"more": f"# once it was s3://AKIA:{SECRET}@bucket/in\n"}, []),
        ({"more": f"vars: {{unused: 'https://host/a?sig={SECRET}'}}\n"}, []),
        ({}, [f"--set=address=ray://me:{SECRET}@head:10001"]),
        ({}, [f"--var=unused=https://host/a?token={SECRET}"]),
    ],
)
def test_a_secret_in_the_files_is_refused_and_not_shown(packed, changes, options):
    with pytest.raises(AccessRefused) as refused:
        packed(options=options, **changes)
    assert refused.value.exit_code == 77
    assert "HF_TOKEN" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_texts_that_only_look_a_little_like_addresses_may_travel(packed):
    prompt = "Is https://example.com/?page=2 good? The key = 5; mail me@example.com at 10:30"
    assert packed(more=f"# {prompt}\nvars: {{prompt: {json.dumps(prompt)}}}\n")
