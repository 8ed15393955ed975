import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam2_jax.serve.folders import check_free_space, remove_leftovers, server_folder
from tests.serve.asking import click, opened

ROOT = Path(__file__).parents[2]


def test_a_folder_is_there_as_long_as_its_server(tmp_path):
    with server_folder(str(tmp_path)) as first:
        assert os.stat(first).st_mode & 0o077 == 0
        with server_folder(str(tmp_path)) as second:
            assert os.path.isdir(first)
            assert second != first
        assert os.listdir(tmp_path) == [os.path.basename(first)]
    assert not os.listdir(tmp_path)


def test_leftovers_go_and_nothing_else(tmp_path):
    dead = tmp_path / "sam2_jax_serve_dead"
    dead.mkdir()
    (dead / "lock").touch()
    starting = tmp_path / "sam2_jax_serve_starting"
    starting.mkdir()
    old = tmp_path / "sam2_jax_serve_old"
    old.mkdir()
    os.utime(old, (0, 0))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").touch()
    (tmp_path / "sam2_jax_serve_link").symlink_to(precious)
    remove_leftovers(str(tmp_path))
    left = {"precious", "sam2_jax_serve_link", "sam2_jax_serve_starting"}
    assert set(os.listdir(tmp_path)) == left
    assert (precious / "lock").exists()


def test_a_full_disk_is_told_before_it_is_full(tmp_path):
    check_free_space(str(tmp_path), 1)
    with pytest.raises(OSError, match="MiB are free"):
        check_free_space(str(tmp_path), 1 << 40)


def start_server(folder):
    command = [sys.executable, "-m", "tests.serve.toy_server", str(folder)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return server, f"http://127.0.0.1:{int(server.stdout.readline())}"


def test_after_a_kill_the_next_server_starts_clean(tmp_path, video):
    import httpx2

    server, address = start_server(tmp_path)
    try:
        with httpx2.Client(base_url=address, timeout=300) as client:
            session = opened(client, video)
            server.send_signal(signal.SIGKILL)
            server.wait()
            with pytest.raises(httpx2.TransportError):
                client.get(f"/api/sessions/{session}")
    finally:
        server.kill()
        server.stdout.close()
        server.wait()
    assert len(list(tmp_path.glob("sam2_jax_serve_*/*/frames"))) == 1

    server, address = start_server(tmp_path)
    try:
        with httpx2.Client(base_url=address, timeout=300) as client:
            gone = click(client, session)
            assert gone.status_code == 404
            assert "restarted" in gone.json()["detail"]
            assert not list(tmp_path.glob("sam2_jax_serve_*/*/frames"))
            opened(client, video)
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=120)
    finally:
        server.kill()
        server.stdout.close()
        server.wait()
    deadline = time.monotonic() + 60
    while os.listdir(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
