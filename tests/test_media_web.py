"""Media behind web addresses: what is asked of which server, and what becomes of its answers."""

import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest

from hfbatch.kinds import IMAGE
from hfbatch.media import read_media


def codes(errors):
    return {row: error.code for row, error in errors.items()}


class Site(BaseHTTPRequestHandler):
    """Redirects /to/URL to URL, breaks off in /broken, else says who asked and how."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if self.path.startswith("/images/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/images/to/"))
            self.end_headers()
            return
        self.send_response(404 if self.path == "/images/gone.png" else 200)
        self.send_header("Content-Length", "9" if self.path == "/images/broken.png" else "4")
        self.end_headers()
        self.wfile.write(b"file")

    def log_message(self, *args):
        """Silent."""


@pytest.fixture
def sites(monkeypatch):
    """Two web servers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Site) for _ in range(2)]
    threads = []
    for server in servers:
        server.asked = []
        threads.append(threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}))
        threads[-1].start()
    yield servers
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_web_server_may_send_on_only_to_where_the_job_allows(sites):
    ours, theirs = (f"127.0.0.1:{server.server_port}" for server in sites)
    base = f"http://{ours}/images"
    names = ["a b ü.png", f"to/{base}/b.png", f"to/http://{theirs}/x.png?sig=hunter2", f"to/http://{ours}/other/x.png"]
    names += ["gone.png", "broken.png", f"to/{base}/to/file:///etc/passwd"]
    files, errors = read_media("image", pa.array([f"{base}/{name}" for name in names]), IMAGE, [base])
    assert files.to_pylist() == [b"file", b"file", *[None] * 5]
    assert sites[1].asked == []
    assert not any(path.startswith("/other") for path, _ in sites[0].asked)
    assert "redirects to" in str(errors[2])
    assert "input.allow_media_prefixes has no prefix of it" in str(errors[2])
    assert "hunter2" not in str(errors[2])
    assert str(errors[4]) == f"unreadable_media: image: {base}/gone.png: HTTP 404"
    assert str(errors[5]) == f"unreadable_media: image: {base}/broken.png: the connection broke off"
    assert list(codes(errors).values()).count("path_refused") == 2
    both, _ = read_media("image", pa.array([f"{base}/{names[2]}"]), IMAGE, [base, f"http://{theirs}"])
    assert both.to_pylist() == [b"file"]


def test_a_password_in_a_url_is_for_its_own_host(sites):
    ours, theirs = (f"127.0.0.1:{server.server_port}" for server in sites)
    base = f"http://user:p%40ss@{ours}/images"
    column = pa.array([f"{base}/a.png", f"{base}/to/http://{theirs}/x.png"])
    files, _ = read_media("image", column, IMAGE, [base, f"http://{theirs}"])
    assert files.to_pylist() == [b"file", b"file"]
    assert {header for _, header in sites[0].asked} == {"Basic " + b64encode(b"user:p@ss").decode()}
    assert sites[1].asked == [("/x.png", None)]
