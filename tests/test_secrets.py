"""No secret leaves the process: not on stdout or stderr, not in an error, not in a file of the output."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hfbatch import pipeline
from hfbatch.access import credentials_in, redact
from hfbatch.errors import HfbatchError, SpecError
from hfbatch.files import list_files
from hfbatch.ledger import Ledger
from hfbatch.load import load_job, load_machine
from hfbatch.planner import Plan, make_plan
from hfbatch.store import LocalStore, checked_name
from tests import console
from tests.inline import inline_passes

SECRET = "TOPSECRET"
SIGNED = f"X-Amz-Credential=AKIA{SECRET}&X-Amz-Signature={SECRET}"


@dataclass
class Site:
    """Files on loopback that are shown only to who has signed."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: bool = True
    queries: set[str] = field(default_factory=set)

    def signed(self, name: str, signature: str = SIGNED) -> str:
        return f"{self.url}/{name}?{signature}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.site.queries.add(query)
        content = self.site.files.get(path.lstrip("/"))
        if content is None or "Signature" not in query:
            self.answer(403 if content else 404, b"")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.answer(200, content)
            return
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        self.answer(206, content[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})

    def answer(self, status: int, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **(more or {})}
        for name, value in {**headers, **({"ETag": '"one"'} if self.site.etags else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def site(write_parquet: Callable[..., Path]) -> Iterator[Site]:
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    site.files["a.parquet"] = write_parquet("in/a.parquet", {"text": ["good", "bad"]}).read_bytes()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"{name}-{SECRET}")


@pytest.fixture
def job(site: Site, job_for: Callable[..., dict[str, Any]], classifier: Path) -> dict[str, Any]:
    return job_for("text-classification", classifier, site.signed("a.parquet"))


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs do without Ray."""
    monkeypatch.setattr("hfbatch.passes.run_passes", inline_passes)


def plan_of(job: dict[str, Any]) -> Plan:
    return make_plan(load_job(job), load_machine(None))


def assert_no_secret_below(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


def test_a_signed_address_is_read_and_stands_nowhere_in_the_output(
    job: dict[str, Any], site: Site, tmp_path: Path, inline: None
) -> None:
    job["vars"], job["input"]["path"] = {"signature": SIGNED}, f"{site.url}/a.parquet?${{signature}}"
    plan = plan_of(job)
    report = pipeline.run(plan)
    assert report.rows == 2
    assert pipeline.run(plan_of(job)).outcome == "nothing_to_do"
    assert SECRET not in report.model_dump_json()
    assert any(SECRET in query for query in site.queries)
    assert_no_secret_below(tmp_path / "out")
    assert list(plan.files) == [f"{site.url}/a.parquet?***"]
    assert SECRET not in repr((plan.shards, plan.agreed, plan.conflict, plan.job.identity, plan.job.step.parameters))


@pytest.mark.parametrize("etags", [True, False])
def test_a_new_signature_is_the_same_file(site: Site, etags: bool) -> None:
    site.etags = etags
    first, second = (list_files([site.signed("a.parquet", f"Signature={n}")], None)[0] for n in ("1", "2"))
    assert first.url != second.url
    assert (first.path, first.fingerprint) == (second.path, second.fingerprint)


@pytest.mark.slow
def test_a_run_with_ray_shows_and_stores_no_secret(job: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job))
    code, out, err = console.in_a_process("run", file, "--json")
    assert code == 0, err
    assert SECRET not in out + err
    assert json.loads(out)["rows"] == 2
    assert_no_secret_below(tmp_path / "out")


def changed(job: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return {**job, section: {**job[section], name: value}} if name else {**job, section: value}


HOSTILE = {
    "credentials in the output": ("output.path", f"s3://AKIA:{SECRET}/x@bucket/out", 2),
    "a signed output": ("output.path", f"az://container/out?sv=1&sig={SECRET}", 2),
    "credentials in a bucket's address": ("input.path", f"s3://AKIA:{SECRET}@bucket/in/*.parquet", 2),
    "a signed bucket": ("input.path", ["in/*.parquet", f"az://c/a.parquet?sig={SECRET}"], 2),
    "a chained address": ("input.path", f"zip://a.parquet::s3://AKIA:{SECRET}@bucket/a.zip", 2),
    "no such scheme": ("input.path", f"gopher://me:{SECRET}@host/a.parquet?sig={SECRET}", 2),
    "no such host": ("input.path", f"http://me:{SECRET}@127.0.0.1:9/a.parquet?sig={SECRET}", None),
    "a list for a text": ("output.path", [f"s3://AKIA:{SECRET}@bucket/out"], 2),
    "an address for a number": ("input.limit", f"https://me:{SECRET}@host/a?sig={SECRET}", 2),
    "an address for a model": ("model.id", f"https://{SECRET}@host/owner/name?token={SECRET}", 2),
    "an address for a task": ("task", f"https://{SECRET}@host/x?token={SECRET}", 2),
    "an unknown variable": ("input.path", f"https://me:{SECRET}@host/${{day}}?sig={SECRET}", 2),
    "not a format": ("input.format", f"https://me:{SECRET}@host/a?sig={SECRET}", 2),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("json_", [[], ["--json"]], ids=["text", "json"])
def test_no_error_shows_a_secret(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, json_: list[str]
) -> None:
    key, value, expected = HOSTILE[case]
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(changed(job, key, value), indent=1))
    code, out, err = console.command_in_this_process(capsys)("plan", file, *json_)
    assert code == (expected or code) != 0, err
    assert err.strip()
    assert SECRET not in out + err
    if json_:
        assert json.loads(out)["exit_code"] == code


@pytest.mark.parametrize("name", ["a.parquet", "absent.parquet"])
def test_what_a_server_refuses_is_told_without_the_signature(job: dict[str, Any], site: Site, name: str) -> None:
    job["input"]["path"] = f"{site.url}/{name}?AWSAccessKeyId={SECRET}&Expires=1"
    with pytest.raises(HfbatchError) as caught:
        plan_of(job)
    assert name in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize("json_", [[], ["--json"]], ids=["text", "json"])
def test_what_a_command_prints_has_no_secret(
    job: dict[str, Any], site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, json_: list[str]
) -> None:
    file = tmp_path / "job.yaml"
    job["input"]["path"] = f"{site.url}/a.parquet?${{signature}}"
    file.write_text(json.dumps(job))
    call = console.command_in_this_process(capsys)
    code, out, err = call(command, file, "--var", f"signature={SIGNED}", *json_)
    assert (code, err) == (0, "")
    assert "a.parquet" in out
    assert SECRET not in out


def test_credentials_on_the_command_line_are_refused_too(
    job: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job))
    url = f"output.path=s3://AKIA:{SECRET}@bucket/out"
    code, out, err = console.command_in_this_process(capsys)("check", file, "--set", url)
    assert (code, out) == (2, "")
    assert "--set output.path: the URL holds credentials" in err
    assert "AWS_ACCESS_KEY_ID" in err
    assert SECRET not in err


@pytest.mark.parametrize(
    ("url", "stored", "refused"),
    [
        ("s3://AKIA:secret@bucket/x", False, True),
        ("S3://AKIA:se/cret@bucket/x", False, True),
        ("az://c/x?sv=1&sig=abc", False, True),
        ("s3://bucket/x?versionId=7", False, False),
        ("s3://bucket/part-?.parquet", False, False),
        ("abfss://container@account.dfs.core.windows.net/x", True, False),
        ("hf://datasets/owner/name@main/x", False, False),
        ("https://me:secret@host/x?sig=1", False, False),
        ("https://token@host/x", True, True),
        ("https://host/x?sig=1", True, True),
        ("sftp://me:secret@host/x", False, False),
        ("sftp://me:secret@host/x", True, True),
        ("simplecache::s3://AKIA:secret@bucket/x", False, True),
        ("out/a:b@c?d=e", True, False),
        ("/data/a@b?c=d", True, False),
        ("file:///data/a@b", True, False),
    ],
)
def test_where_credentials_are_refused(url: str, stored: bool, refused: bool) -> None:
    assert credentials_in(url, stored=stored) is refused


# names cannot leave the output


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "", "a\0b", "a/"])
def test_a_name_that_would_leave_the_store_is_refused(tmp_path: Path, name: str) -> None:
    store = LocalStore(tmp_path / "out")
    for call in (store.get, store.size, lambda name: store.put(name, b""), lambda name: store.put_if_absent(name, b"")):
        with pytest.raises(ValueError, match="is no name in a store"):
            call(name)
    with pytest.raises(ValueError, match="is no name in a store"):
        checked_name(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".hidden", "a\nb", "a b", "", "x" * 101, "-x", "a\\b"])
def test_a_job_name_that_is_no_file_name_is_refused(job: dict[str, Any], name: str) -> None:
    with pytest.raises(SpecError, match="name"):
        load_job({**job, "name": name})


def test_column_names_and_prefixes_stay_in_the_schema(
    job: dict[str, Any], site: Site, write_parquet: Callable[..., Path], tmp_path: Path, inline: None
) -> None:
    hostile = "../../escaped/\u202e\n'\";--"
    columns = {hostile: ["good", "bad"], "../up": [1, 2], "/etc/x": [1, 2]}
    site.files["b.parquet"] = write_parquet("in/b.parquet", columns).read_bytes()
    job["input"] = {"path": site.signed("b.parquet"), "columns": {"text": hostile}}
    job["output"]["prefix"] = "../../escaped/"
    before = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents}
    plan = plan_of(job)
    pipeline.run(plan)
    after = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents}
    assert after - before == {tmp_path / "out"}
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1
    assert "../../escaped/label" in plan.job.output_schema.names


def test_shard_ids_read_from_a_doctored_output_cannot_leave_it(job: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(job)
    ledger = Ledger(LocalStore(Path(plan.job.output)))
    pipeline._begin(plan, ledger, "run")
    (tmp_path / "victim.json").write_text("{}")
    with pytest.raises(ValueError, match="is no name in a store"):
        ledger.receipts(plan.job.generation, ["../../../../victim"])


@pytest.mark.timeout(20)
def test_a_long_text_without_a_secret_is_looked_through_once():
    text = "a" * 1_000_000
    assert redact(text) == text
