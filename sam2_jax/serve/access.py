"""Who may use the server: no other site, and from other machines only those who know the token.

request  ->  refused with a reason, or on to the application, whose answers get safe headers
"""

import ipaddress
import secrets
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, urlsplit

COOKIE = "sam2_jax_token"
MAX_BODY = 8 << 20  # bytes, of any request except an upload
_UPLOAD = ("POST", "/api/sessions")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refusal(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    token: str | None,
    only_loopback: bool,
) -> tuple[int, str] | None:
    """Decides on a request by its headers.

    Args:
      method: the HTTP method.
      path: of the URL.
      query: what follows the question mark.
      headers: with names in lower case.
      token: the secret that a request must carry; None if there is none.
      only_loopback: whether the server is for this machine only, whatever host name a browser was
        tricked into using.

    Returns:
      Status and reason, or None if it is allowed.
    """
    host = headers.get("host", "")
    if only_loopback and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        return 403, (
            f"The server is for this machine only, but was addressed as {host[:100]!r}: open it as "
            "localhost or 127.0.0.1, or start it with --host and a token."
        )
    origin = headers.get("origin")
    is_foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    is_visit = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
    site = headers.get("sec-fetch-site", "none")
    if is_foreign or (site not in ("none", "same-origin") and not is_visit):
        return 403, (
            "Requests from other sites are refused. Open the server's own page, or "
            "call the interface from a program."
        )
    if token and not any(
        secrets.compare_digest(t.encode(), token.encode()) for t in _tokens(path, query, headers)
    ):
        return 401, (
            "A token is needed: open the address with ?token=... that the server printed when it "
            "started, or send the header 'Authorization: Bearer TOKEN'."
        )
    if (method, path) != _UPLOAD and method != "GET":
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers:
            return 411, "Send the request with a Content-Length header."
        if not length.isdecimal() or int(length) > MAX_BODY:
            return 413, f"The request is larger than {MAX_BODY >> 20} MiB: send less at once."
    return None


def _tokens(path: str, query: str, headers: Mapping[str, str]) -> list[str]:
    """The tokens of a request, however they were sent."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    given = [value.strip()] if scheme.lower() == "bearer" else []
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            given.append(value)
    if path == "/":  # only the page: addresses end up in histories
        given += parse_qs(query).get("token", [])
    return given


class Guard:
    """ASGI middleware that applies `refusal`, and adds headers to every response."""

    def __init__(self, app: Callable, token: str | None, only_loopback: bool):
        self._app, self._token, self._only_loopback = app, token, only_loopback

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Handles a request."""
        from starlette.responses import JSONResponse

        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        query = scope["query_string"].decode("latin-1")

        async def send_safely(message: dict) -> None:
            if message["type"] == "http.response.start":
                sent = {name for name, _ in message["headers"]}
                extra = (
                    _HEADERS
                    if b"cache-control" in sent
                    else _HEADERS | {"cache-control": "no-store"}
                )
                added = [(k.encode(), v.encode()) for k, v in extra.items()]
                if self._token and scope["path"] == "/" and message["status"] == 200:
                    cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict"
                    added.append((b"set-cookie", cookie.encode()))
                message = message | {"headers": [*message["headers"], *added]}
            await send(message)

        refused = refusal(
            scope["method"], scope["path"], query, headers, self._token, self._only_loopback
        )
        app = self._app
        if refused:
            app = JSONResponse({"detail": refused[1]}, refused[0])
        await app(scope, receive, send_safely)
