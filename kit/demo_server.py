"""The classroom page's server: on this machine alone unless told otherwise, and for its own pages alone."""

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kit.errors import KitError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
# What the page needs of gradio. Its other addresses give out files, fetch what lies elsewhere, and take uploads.
PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/report/shown", "/report/new")
BELOW = ("/assets/", "/static/", "/svelte/")
INTERFACE = ("queue/join", "queue/data", "heartbeat/", "startup-events", "cancel", "reset", "theme.css")


class OwnPagesOnly:
    """ASGI middleware that answers 403 to whatever another web page sends here, and to whatever the page does not need.

    Another page's request: its Origin is not this server, the browser says that it comes from another site, or the name
    by which it asks (Host) is none of this server's, as when a foreign name was made to lead to this machine. Nor may
    another page show this one in a frame.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app, self.host = app, host.lower()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif needed(scope["path"]) and self._own(dict(scope["headers"])):
            await self.app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page answers its own requests alone.\n"})

    def _own(self, headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        same = origin is None or urlsplit(origin.decode("latin-1")).netloc == host
        elsewhere = headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
        return same and not elsewhere and self._ours(urlsplit(f"//{host}").hostname or "")

    def _ours(self, name: str) -> bool:
        """Whether this server goes by that name. Where it is open to the network: by every address, which nobody else
        can make lead here, and by the machine's own name."""
        if self.host in LOOPBACK:
            return name in LOOPBACK
        if self.host in EVERYWHERE:
            return name in (*LOOPBACK, socket.gethostname().lower()) or _address(name)
        return name == self.host


def needed(path: str) -> bool:
    """Whether the page needs this address."""
    interface = path.removeprefix("/gradio_api/")
    if interface != path:
        return interface.startswith(INTERFACE)
    return path in PAGE or (path.startswith(BELOW) and ".." not in path)


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _unframed(send: Any) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"x-frame-options", b"DENY")]
        await send(message)

    return sent


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. KitError where none can be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise KitError(f"{host}, port {port}: {error.strerror}. Choose another --port, or another --host.") from None


def addresses(host: str, port: int) -> list[str]:
    """What to type into a browser to see the page."""
    import psutil

    hosts = [host]
    if host in EVERYWHERE:
        found = [one for nic in psutil.net_if_addrs().values() for one in nic if one.family == socket.AF_INET]
        hosts = [one.address for one in found if one.address not in LOOPBACK] or [LOOPBACK[0]]
    return [f"http://[{one}]:{port}" if ":" in one else f"http://{one}:{port}" for one in hosts]


def serve(
    page: Any, listening: socket.socket, host: str, reports: dict[str, Callable[[], Path | None]], **options: Any
) -> None:
    """Serve a gradio page (``options``: of ``gradio.mount_gradio_app``), and reports under ``/report/<name>``, until
    Ctrl-C. ``host`` "0.0.0.0" lets every machine of the network in."""
    import gradio
    import uvicorn
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report/{name}")
    def report(name: str) -> FileResponse:
        path = reports[name]() if name in reports else None
        if path is None or not path.exists():
            raise HTTPException(404, "There is no such report.")
        return FileResponse(path)

    shut: dict[str, Any] = {"allowed_paths": [], "run_history": False, "enable_monitoring": False, "max_file_size": 0}
    gradio.mount_gradio_app(app, page, path="/", ssr_mode=False, footer_links=[], **shut, **options)
    # Every open page keeps a connection alive: without a timeout Ctrl-C would wait for all of them.
    config = uvicorn.Config(OwnPagesOnly(app, host), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run([listening])
