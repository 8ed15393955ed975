import pytest

from sam2_jax.serve.access import is_loopback, refusal
from tests.serve.asking import opened

HERE = {"host": "localhost:8000"}
TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "evil.com", "localhost.evil.com", ""]
)
def test_not_loopback(host):
    assert not is_loopback(host)


def ask(headers, method="POST", path="/api/sessions", query="", token=None, only_loopback=True):
    refused = refusal(method, path, query, headers, token, only_loopback)
    return refused[0] if refused else None


@pytest.mark.parametrize(
    "headers",
    [
        HERE,
        {"host": "127.0.0.1:8000"},
        {"host": "[::1]:8000"},
        HERE | {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"},
        HERE | {"sec-fetch-site": "none"},
    ],
)
def test_this_machine_is_welcome(headers):
    assert ask(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.com"},  # a name that was made to lead here
        {"host": "evil.com:8000", "origin": "http://evil.com:8000"},
        HERE | {"origin": "http://evil.com"},
        HERE | {"origin": "http://localhost:9999"},
        HERE | {"origin": "null"},
        HERE | {"origin": ""},
        HERE | {"sec-fetch-site": "cross-site"},
        HERE | {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_other_sites_are_refused(headers, method):
    assert ask(headers, method) == 403


def test_a_link_from_another_site_opens_the_page_and_nothing_else():
    headers = HERE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert ask(headers, "GET", "/") is None
    assert ask(headers, "GET", "/api/info") == 403
    assert ask(headers, "POST", "/") == 403


def test_a_token_in_any_of_three_ways():
    away = {"host": "10.0.0.1:8000"}
    asked = {"token": TOKEN, "only_loopback": False}
    assert ask(away, **asked) == 401
    assert ask(away | {"authorization": f"Bearer {TOKEN}"}, **asked) is None
    assert ask(away | {"authorization": "Bearer wrong"}, **asked) == 401
    assert ask(away | {"authorization": f"Basic {TOKEN}"}, **asked) == 401
    assert ask(away | {"cookie": f"a=b; sam2_jax_token={TOKEN}"}, **asked) is None
    assert ask(away | {"cookie": "sam2_jax_token=é"}, **asked) == 401
    assert ask(away, "GET", "/", f"token={TOKEN}", **asked) is None
    assert ask(away, "GET", "/", "token=wrong", **asked) == 401
    assert ask(away, "GET", "/api/info", f"token={TOKEN}", **asked) == 401


def test_bodies_are_bounded():
    path = "/api/sessions/x/prompts"
    assert ask(HERE | {"content-length": str(1 << 30)}, path=path) == 413
    assert ask(HERE | {"transfer-encoding": "chunked"}, path=path) == 411
    assert ask(HERE | {"content-length": str(1 << 30)}) is None  # an upload has its own limit


def test_a_server_with_a_token(make_client, video):
    client = make_client(token=TOKEN, only_loopback=False)
    for path in ("/", "/api/info", "/page/page.js", "/api/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert "?token=" in answer.json()["detail"]
    assert client.post("/api/sessions", content=video).status_code == 401
    page = client.get("/", params={"token": TOKEN})
    assert page.status_code == 200
    assert "HttpOnly" in page.headers["set-cookie"]
    opened(client, video)  # the cookie is enough from here on


def test_every_answer_has_safe_headers(client):
    for path in ("/", "/api/info", "/nothing", "/page/page.js"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page//etc/passwd"]
)
def test_only_the_page_is_served(client, path):
    assert client.get(path).status_code == 404
