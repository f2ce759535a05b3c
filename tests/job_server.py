"""A job server on loopback, as far as Ray's client needs one: it keeps what it is sent and tells what it is given."""

from __future__ import annotations

import asyncio
import io
import ssl
import threading
import zipfile
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from aiohttp import web


@dataclass
class JobServer:
    """Serves between `start` and `stop`. `log` is told in the pieces of `cuts`: a connection breaks at each."""

    token: str | None = None
    ray_version: str = metadata.version("ray")
    tls: ssl.SSLContext | None = None
    log: str = ""
    cuts: list[int] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # of every job: status, driver_exit_code ...
    url: str = ""
    jobs: list[dict[str, Any]] = field(default_factory=list)  # what was submitted
    packages: dict[str, bytes] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)  # every request, with its headers and body
    holding: bool = False  # a log that has been told whole stays open

    def start(self) -> None:
        self._loop, ready = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        self._loop.close()

    def files(self) -> dict[str, str]:
        """What lies in the folder that the job runs in."""
        assert len(self.packages) == 1
        with zipfile.ZipFile(io.BytesIO(next(iter(self.packages.values())))) as archive:
            return {name: archive.read(name).decode() for name in archive.namelist() if not name.endswith("/")}

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._until_over(ready))

    async def _until_over(self, ready: threading.Event) -> None:
        self._over = asyncio.Event()
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/jobs/", self._list),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{id}", self._details),
                web.post("/api/jobs/{id}/stop", self._stop),
                web.get("/api/jobs/{id}/logs", self._logs),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
                web.get("/api/packages/{protocol}/{name}", self._find_package),
                web.put("/api/packages/{protocol}/{name}", self._put_package),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls).start()
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await self._over.wait()
        await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.read()
        self.received.append(f"{request.method} {request.path_qs} {dict(request.headers)} {body!r}")
        given = request.headers.get("Authorization")
        if self.token is not None and given != f"Bearer {self.token}":
            return web.Response(status=403 if given else 401, text="no such token")
        if request.match_info.get("id") == "absent":
            return web.Response(status=404, text="Job absent does not exist")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        found = {"version": "4", "ray_version": self.ray_version, "ray_commit": "0", "session_name": "s"}
        return web.json_response(found)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([])

    async def _submit(self, request: web.Request) -> web.Response:
        job = await request.json()
        self.jobs.append(job)
        return web.json_response({"job_id": job["submission_id"], "submission_id": job["submission_id"]})

    async def _details(self, request: web.Request) -> web.Response:
        job = self.jobs[-1] if self.jobs else {"entrypoint": "", "metadata": {}}
        about = {
            "type": "SUBMISSION",
            "submission_id": request.match_info["id"],
            "start_time": 1_000,
            "end_time": 63_000,
        }
        details = {name: job[name] for name in ("entrypoint", "metadata")}
        return web.json_response({**about, **details, "status": "SUCCEEDED", "driver_exit_code": 0, **self.details})

    async def _stop(self, request: web.Request) -> web.Response:
        self.stopped.append(request.match_info["id"])
        self.details = {"status": "STOPPED", "driver_exit_code": None}
        return web.json_response({"stopped": True})

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.log})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        if self.cuts:
            await stream.send_str(self.log[: self.cuts.pop(0)])
            await asyncio.sleep(0.05)  # what is sent has left
            assert request.transport is not None
            request.transport.abort()
            return stream
        for line in self.log.splitlines(keepends=True):
            await stream.send_str(line)
        while self.holding and not self._over.is_set():
            await asyncio.sleep(0.05)
        return stream

    async def _find_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _put_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()
