"""A Hugging Face Hub on loopback: repositories from local folders, with commits, branches and tags.

    with fake_hub(cache) as hub:                    # HF_ENDPOINT and an empty cache, here and in child processes
        first = hub.commit("owner/tiny", folder)    # a folder, or {name: bytes}; returns the full commit
        hub.tag("owner/tiny", "v1", first)
        hub.gated.add("owner/tiny")                 # files need hub.token; `private` hides the repository wholly
        hub.failures = [503, 503]                   # the next two requests; with retry_after they say how long to wait
    hub.cut["model.safetensors"] = 1            # its next download ends halfway; hub.corrupt: has one wrong byte
        hub.requests                                # ["GET /api/models/owner/tiny", ...]

It answers as huggingface.co does, as far as huggingface_hub's model_info, refs, commits, tree and downloads ask.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs, unquote

from huggingface_hub import close_session, constants


@dataclass
class FakeRepo:
    """Commits are name -> copied file; `history` lists a branch's commits, newest first."""

    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str, *, short: bool) -> str | None:
        """The full commit that a branch, tag, commit or (as the real Hub allows) its beginning means."""
        if revision in self.history:
            return self.history[revision][0]
        if revision in self.tags:
            return self.tags[revision]
        found = [
            sha for sha in self.files if sha == revision or (short and len(revision) > 3 and sha.startswith(revision))
        ]
        return found[0] if len(found) == 1 else None


@dataclass
class FakeHub:
    """The server's state; change it at any time."""

    folder: Path
    endpoint: str = ""
    repos: dict[str, FakeRepo] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    failures: list[int] = field(default_factory=list)
    retry_after: int | None = None  # seconds
    cut: dict[str, int] = field(default_factory=dict)  # file name -> downloads
    corrupt: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    token: str = "hf_the_right_token"
    expands_short_commits: bool = True

    def commit(self, repo_id: str, content: Path | Mapping[str, bytes], branch: str = "main") -> str:
        """Copy the content as the new head of a branch and return its full commit."""
        if isinstance(content, Path):
            content = {p.relative_to(content).as_posix(): p.read_bytes() for p in content.rglob("*") if p.is_file()}
        repo = self.repos.setdefault(repo_id, FakeRepo())
        parents = repo.history.get(branch) or repo.history.get("main") or []
        digest = hashlib.sha1("".join(parents).encode())
        for name in sorted(content):
            digest.update(name.encode() + b"\0" + hashlib.sha1(content[name]).digest())
        sha = digest.hexdigest()
        repo.files[sha] = {name: self.folder / sha / name for name in content}
        for name, path in repo.files[sha].items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content[name])
        repo.history[branch] = [sha, *parents]
        return sha

    def tag(self, repo_id: str, name: str, sha: str) -> None:
        """Give a commit a name that stays."""
        self.repos[repo_id].tags[name] = sha


class _Refusal(Exception):
    def __init__(self, status: int, code: str | None, message: str) -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.failures:
                raise _Refusal(self.hub.failures.pop(0), None, "on purpose")
            for pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match:
                    return answer(self, *(unquote(part or "") for part in match.groups()))
            raise _Refusal(404, None, "no such page")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            if self.hub.retry_after is not None and refusal.status in (429, 503):
                headers["Retry-After"] = str(self.hub.retry_after)
            body = json.dumps({"error": refusal.message}).encode()
            self.answer(refusal.status, body, {**headers, "X-Error-Message": refusal.message})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {})

    def repo(self, repo_id: str) -> FakeRepo:
        """The repository, if the caller may know of it. The real Hub says 401 to strangers, 404 to the logged in."""
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {self.hub.token}"):
            raise _Refusal(401, None, "Invalid credentials in Authorization header")
        if repo_id not in self.hub.repos or (repo_id in self.hub.private and given is None):
            if given is None:
                raise _Refusal(401, None, "Invalid username or password.")
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        return self.hub.repos[repo_id]

    def at(self, repo_id: str, revision: str) -> tuple[FakeRepo, str]:
        repo = self.repo(repo_id)
        sha = repo.resolve(revision, short=self.hub.expands_short_commits)
        if sha is None:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha

    def model_info(self, repo_id: str, revision: str) -> None:
        repo, sha = self.at(repo_id, revision or "main")
        gated = "manual" if repo_id in self.hub.gated else False
        siblings = [{"rfilename": name} for name in repo.files[sha]]
        self.json({"id": repo_id, "modelId": repo_id, "sha": sha, "private": False, "gated": gated, "tags": [],
                   "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip

    def harnesses(self) -> None:
        """What huggingface_hub asks for once a day and machine, to name the program that runs it."""
        self.json({"standardEnvVars": [], "harnesses": {"none": {"envVars": {}}}})

    def refs(self, repo_id: str) -> None:
        repo = self.repo(repo_id)
        heads = {name: shas[0] for name, shas in repo.history.items()}

        def listed(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in named.items()]

        self.json({"branches": listed("heads", heads), "tags": listed("tags", repo.tags), "converts": []})

    def commits(self, repo_id: str, revision: str) -> None:
        repo, sha = self.at(repo_id, revision)
        shas = repo.history.get(revision) or [sha]
        when = "2026-01-01T00:00:00.000Z"
        self.json([{"id": sha, "title": "", "message": "", "authors": [], "date": when} for sha in shas])

    def tree(self, repo_id: str, revision: str, below: str) -> None:
        repo, sha = self.at(repo_id, revision)
        files = {name: path for name, path in repo.files[sha].items() if name.startswith(f"{below}/" if below else "")}
        if below and not files:
            raise _Refusal(404, "EntryNotFound", f"{below} does not exist")
        deep = "recursive=true" in self.path.lower()
        depth = below.count("/") + 1 if below else 0
        folders = {"/".join(name.split("/")[:n]) for name in files for n in range(depth + 1, name.count("/") + 1)}
        listed = [_entry(name, path) for name, path in files.items()]
        listed += [{"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders)]
        self.json([entry for entry in listed if deep or str(entry["path"]).count("/") == depth])

    def paths_info(self, repo_id: str, revision: str) -> None:
        """Files and folders by name, as the file system hf:// asks for them."""
        repo, sha = self.at(repo_id, revision)
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = json.loads(asked)["paths"] if asked.startswith("{") else parse_qs(asked)["paths"]
        found = [_entry(name, repo.files[sha][name]) for name in names if name in repo.files[sha]]
        folders = [name for name in names if any(file.startswith(f"{name}/") for file in repo.files[sha])]
        self.json(found + [{"type": "directory", "path": name, "oid": "0" * 40} for name in folders])

    def file(self, repo_id: str, revision: str, name: str) -> None:
        repo, sha = self.at(repo_id, revision)
        if repo_id in self.hub.gated and self.headers.get("Authorization") is None:
            raise _Refusal(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if name not in repo.files[sha]:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        path = repo.files[sha][name]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_etag(path)}"', "Content-Type": "application/octet-stream"}
        content, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.command == "GET" and self.take(self.hub.corrupt, name):
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command == "GET" and self.take(self.hub.cut, name):
            self.close_connection = True
            return self.answer(200, content[: len(content) // 2], {**headers, "Content-Length": str(len(content))})
        if asked is None:
            return self.answer(200, content, headers)
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.answer(206, content[start:stop], headers)

    @staticmethod
    def take(faults: dict[str, int], name: str) -> bool:
        """Whether this answer gets the fault; one less is left."""
        faults[name] = faults.get(name, 0) - 1
        return faults[name] >= 0

    def log_message(self, *_: object) -> None:
        """Silent: the tests read `requests`."""


_ID = r"/([^/]+(?:/[^/]+)?)"
_ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    (r"/api/agent-harnesses", _Handler.harnesses),
    (rf"/api/(?:models|datasets){_ID}/refs", _Handler.refs),
    (rf"/api/(?:models|datasets){_ID}/commits/([^/]+)", _Handler.commits),
    (rf"/api/(?:models|datasets){_ID}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (rf"/api/(?:models|datasets){_ID}/revision/([^/]+)", _Handler.model_info),
    (rf"/api/(?:models|datasets){_ID}()", _Handler.model_info),
    (rf"/api/(?:models|datasets){_ID}/paths-info/([^/]+)", _Handler.paths_info),
    (rf"(?:/datasets)?{_ID}/resolve/([^/]+)/(.+)", _Handler.file),
)


def _entry(name: str, path: Path) -> dict[str, object]:
    size, large = path.stat().st_size, {"lfs": {"oid": _etag(path), "size": path.stat().st_size, "pointerSize": 134}}
    return {"type": "file", "path": name, "size": size, "oid": _blob_id(path), **(large if _is_large(path) else {})}


def _is_large(path: Path) -> bool:
    """Whether the real Hub keeps such a file in LFS, where the sha256 is its name."""
    return path.suffix in (".safetensors", ".bin")


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if _is_large(path) else _blob_id(path)


def _blob_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub(cache: Path) -> Iterator[FakeHub]:
    """Serve an empty Hub until the block ends. Nobody is logged in; `cache` is HF_HOME."""
    with ExitStack() as stack:
        hub = FakeHub(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        handler = type("Handler", (_Handler,), {"hub": hub})
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # seconds between looks
        stack.callback(server.shutdown)
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        stack.enter_context(mock.patch.dict(os.environ, env))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE"):
            os.environ.pop(name, None)  # mock.patch.dict puts them back
        for name, value in (("HF_HUB_CACHE", str(cache / "hub")), ("HF_TOKEN_PATH", str(cache / "token")),
                            ("AGENT_HARNESSES_PATH", str(cache / "harnesses")), ("HF_HUB_OFFLINE", False)):  # fmt: skip
            stack.enter_context(mock.patch.object(constants, name, value, create=True))
        stack.callback(close_session)
        yield hub
