"""The classroom page's server: on this machine alone unless told otherwise, and for its own pages alone."""

from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


class OwnPagesOnly:
    """ASGI middleware that answers 403 to whatever another web page sends here: its Origin is not this server, or the
    name by which it asks (Host) is none of ``hosts`` (None: any will do), as when a foreign name was made to lead to
    this machine."""

    def __init__(self, app: Any, hosts: tuple[str, ...] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket") or self._own(dict(scope["headers"])):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"This page answers its own requests alone.\n"})

    def _own(self, headers: dict[bytes, bytes]) -> bool:
        host = headers.get(b"host", b"").decode("latin-1")
        name = urlsplit(f"//{host}").hostname or ""
        origin = headers.get(b"origin")
        same = origin is None or urlsplit(origin.decode("latin-1")).netloc == host
        return same and (self.hosts is None or name in self.hosts)


def serve(page: Any, host: str, port: int, **options: Any) -> None:
    """Serve a gradio page (``options``: of ``gradio.mount_gradio_app``) until Ctrl-C. ``host`` "0.0.0.0" lets every
    machine of the network in, by any name."""
    import gradio
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(app, page, path="/", allowed_paths=[], ssr_mode=False, footer_links=[], **options)
    hosts = LOOPBACK if host in LOOPBACK else None if host in EVERYWHERE else (host,)
    uvicorn.run(OwnPagesOnly(app, hosts), host=host, port=port, log_level="warning")
