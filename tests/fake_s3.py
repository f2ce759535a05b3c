"""A real S3 server (moto) on loopback, with faults on request.

with fake_s3() as s3:
    open_store(f"{s3.url}/out")       # plain s3:// URLs work here and in child processes
    s3.faults.append(Fault("PUT", 503))
    s3.faults.append(Fault("PUT", UNHEARD))   # the write lands, its answer is lost
    s3.chaos = lambda method: 503             # any request, as this function says
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from s3fs import S3FileSystem
from werkzeug.serving import make_server

UNHEARD = -1
SILENT = -2
TORN = -3
_CODES = {
    400: "ExpiredToken",
    403: "AccessDenied",
    409: "ConditionalRequestConflict",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
    507: "XMinioStorageFull",
}


@dataclass(frozen=True)
class Fault:
    """The next request with this method fails once.

    `status` is an HTTP status; UNHEARD: it took effect, but its answer is lost; SILENT: no answer comes; TORN: the
    answer breaks off half-way.
    """

    method: str
    status: int


@dataclass
class FakeS3:
    """The running server. `url` is a bucket; `requests` are (method, path with query), in order of arrival.

    Writes happen one after the other, as a real server's do (moto's conditional put looks, then writes). With
    `unconditional` it ignores If-None-Match, as servers do that do not know it.
    """

    url: str
    endpoint: str
    env: dict[str, str]
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    chaos: Callable[[str], int | None] = lambda method: None
    unconditional: bool = False
    closing: threading.Event = field(default_factory=threading.Event)

    def wrap(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """`app` with the faults in front of it."""
        lock, writing = threading.Lock(), threading.Lock()

        def moto(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if self.unconditional:
                environ.pop("HTTP_IF_NONE_MATCH", None)
            with writing if environ["REQUEST_METHOD"] == "PUT" else nullcontext():
                return app(environ, start_response)

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            method = environ["REQUEST_METHOD"]
            with lock:
                self.requests.append((method, environ["PATH_INFO"] + "?" + environ.get("QUERY_STRING", "")))
                fault = next((fault for fault in self.faults if fault.method == method), None)
                if fault is not None:
                    self.faults.remove(fault)
                status = fault.status if fault is not None else self.chaos(method)
            if status is None:
                return moto(environ, start_response)
            if status == SILENT:
                self.closing.wait()
                raise ConnectionAbortedError("no answer on purpose")
            if status in (UNHEARD, TORN):
                content = b"".join(moto(environ, start_response if status == TORN else lambda *_: None))
                return _cut_off(environ, content[: len(content) // 2] if status == TORN else b"")
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{status} {_CODES[status]}", [("Content-Type", "application/xml")])
            if method == "HEAD":
                return []
            return [f"<Error><Code>{_CODES[status]}</Code><Message>on purpose</Message></Error>".encode()]

        return answer


def _cut_off(environ: dict[str, Any], content: bytes) -> Iterator[bytes]:
    """The beginning of an answer (none, if it is empty), then the end of the connection."""
    if content:
        yield content
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("the answer is lost on purpose")


class _QuietHandler(MotoRequestHandler):
    """No access log; a lost answer is a closed connection, not a page with a traceback."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing: the tests read `requests` instead."""


@contextmanager
def fake_s3(bucket: str = "bucket") -> Iterator[FakeS3]:
    """Serve S3 until the block ends, with AWS_* set for this process and its children."""
    s3 = FakeS3(url=f"s3://{bucket}", endpoint="", env={})
    app = s3.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_QuietHandler)
    s3.endpoint = f"http://127.0.0.1:{server.server_port}"
    s3.env.update(
        AWS_ENDPOINT_URL=s3.endpoint,
        AWS_ACCESS_KEY_ID="fake-key",
        AWS_SECRET_ACCESS_KEY="fake-secret",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_EC2_METADATA_DISABLED="true",
        NO_PROXY="127.0.0.1,localhost",
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)  # seconds between looks
    thread.start()
    try:
        with mock.patch.dict(os.environ, s3.env):
            S3FileSystem.clear_instance_cache()  # they know the endpoint of when they were made
            client = boto3.client("s3", endpoint_url=s3.endpoint)
            client.create_bucket(Bucket=bucket)
            client.close()
            yield s3
    finally:
        S3FileSystem.clear_instance_cache()
        s3_backends.reset()  # moto's buckets are the process's
        s3.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
