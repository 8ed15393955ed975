import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from checkpoints_convert.convert import main
from sam2_jax.checkpoint import bundled, download

BODY = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY: whole, by range, cut off, or never by range."""

    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.starts.append(start)
        if self.path == "/no-ranges":
            start = 0
        if start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            first = 0 if self.path == "/wrong-range" else start
            self.send_header("Content-Range", f"bytes {first}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        end = start + 1000 if self.path == "/cut" else len(BODY)
        self.wfile.write(BODY[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.starts = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=10)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "model.pt"


def part_of(path, data):
    path.parent.mkdir(exist_ok=True)
    part = path.with_name("model.pt.part")
    part.write_bytes(data)
    return part


def test_fetches_and_checks(server, path):
    assert download.fetch(f"{server.url}/model", path, DIGEST.upper()) == DIGEST
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


def test_resumes(server, path):
    part_of(path, BODY[:777])
    assert download.fetch(f"{server.url}/model", path) == DIGEST
    assert server.starts == [777]


def test_resumes_a_complete_part(server, path):
    part_of(path, BODY)
    assert download.fetch(f"{server.url}/model", path) == DIGEST


def test_starts_again_when_the_server_cannot_resume(server, path):
    part_of(path, b"other bytes")
    assert download.fetch(f"{server.url}/no-ranges", path) == DIGEST


def test_an_interruption_is_resumed_later(server, path):
    with pytest.raises(ConnectionError, match=r"1000 of 1280000 bytes.*Run this again"):
        download.fetch(f"{server.url}/cut", path)
    assert not path.exists()
    assert download.fetch(f"{server.url}/model", path) == DIGEST
    assert server.starts == [0, 1000]


def test_wrong_checksum(server, path):
    with pytest.raises(ValueError, match=DIGEST):
        download.fetch(f"{server.url}/model", path, "0" * 64)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("have", [b"x", BODY + b"too much"])
def test_refuses_another_range(server, path, have):
    part_of(path, have)
    with pytest.raises(ConnectionError, match="cannot be fetched"):
        download.fetch(f"{server.url}/wrong-range", path)


def test_missing_and_offline_say_what_to_do(server, path):
    with pytest.raises(ConnectionError, match=rf"404.*another machine and put it at {path}"):
        download.fetch(f"{server.url}/missing", path)
    with pytest.raises(ConnectionError, match="put it at"):
        download.fetch("http://127.0.0.1:9/model", path)


def test_official_urls():
    base = "https://dl.fbaipublicfiles.com/segment_anything_2"
    assert download.official_url("sam2_hiera_t.yaml") == f"{base}/072824/sam2_hiera_tiny.pt"
    url = download.official_url("facebook/sam2.1-hiera-base-plus")
    assert url == f"{base}/092824/sam2.1_hiera_base_plus.pt"


def test_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download, "official_url", lambda name: f"{server.url}/missing")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    expected = tmp_path / "sam2_jax" / "sam2.1_hiera_tiny.pt"
    with pytest.raises(FileNotFoundError, match=f"put it at {expected}"):
        download.cached_checkpoint("facebook/sam2.1-hiera-tiny")
    monkeypatch.setattr(download, "official_url", lambda name: f"{server.url}/model")
    for _ in range(2):
        assert download.cached_checkpoint("facebook/sam2.1-hiera-tiny") == expected
    assert expected.read_bytes() == BODY
    assert server.starts == [0]


def test_weights_by_the_name_of_a_model(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "cached_checkpoint", lambda name: tmp_path / name)
    assert download.find_weights("sam2_nano") == bundled.WEIGHTS
    assert download.find_weights("sam2.1_hiera_t.yaml") == tmp_path / "sam2.1_hiera_tiny"
    assert download.find_weights("runs/x@best") == Path("runs/x@best")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sam2_nano").mkdir()  # what is there comes first
    assert download.find_weights("sam2_nano") == Path("sam2_nano")


def test_command_line(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "official_url", lambda name: f"{server.url}/{name}")
    monkeypatch.chdir(tmp_path)
    # What arrives is no checkpoint, and is not taken for one.
    assert main(["--download", "sam2.1_hiera_tiny"]) == 2
    captured = capsys.readouterr()
    assert DIGEST in captured.out
    assert "error: sam2.1_hiera_tiny.pt: this is not a PyTorch zip" in captured.err
