"""A server with the toy model, and videos to send it."""

import collections
import importlib.util
import io
import threading
from collections.abc import Iterator

import jax
import pytest
from PIL import Image

from sam2_jax.data.media import write_video
from sam2_jax.predict.video import SAM2VideoPredictor
from sam2_jax.serve.limits import Limits
from tests import toy
from tests.parity.reference_scene import scene
from tests.serve.asking import HEIGHT, WIDTH

# A plain install works without the packages of the extra `serve`.
collect_ignore_glob = [] if importlib.util.find_spec("fastapi") else ["*"]


@pytest.fixture(autouse=True, scope="package")
def _free_programs() -> Iterator[None]:
    """As in `tests/conftest.py`, but after the whole folder, which uses the same few programs."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def programs() -> Iterator[collections.Counter]:
    """How often each program was traced."""
    with toy.counted_programs(toy.VIDEO_PROGRAMS) as counts:
        yield counts


@pytest.fixture(scope="session")
def predictor(programs) -> SAM2VideoPredictor:
    return SAM2VideoPredictor(toy.model(), chunk=1)


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> bytes:
    """Six frames, as mp4."""
    path = tmp_path_factory.mktemp("media") / "scene.mp4"
    write_video(path, scene(6, HEIGHT, WIDTH), 12)
    return path.read_bytes()


@pytest.fixture(scope="session")
def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene(1, HEIGHT, WIDTH)[0]).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def make_client(predictor, tmp_path, monkeypatch):
    """Starts servers on this machine, as `make_client(token=..., frames=...)`."""
    from starlette.testclient import TestClient

    from sam2_jax.serve import app as serve_app

    monkeypatch.setattr(serve_app, "warm_up", lambda worker, predictor: worker.call(lambda: None))
    started = []

    def make(token=None, only_loopback=True, **limits):
        app = serve_app.make_app(
            predictor, Limits(**limits), token, only_loopback, folder=str(tmp_path)
        )
        client = TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False)
        started.append(client.__enter__())
        return client

    yield make
    for client in started:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client) -> Iterator:
    return make_client()


@pytest.fixture
def live(predictor, tmp_path, monkeypatch):
    """A server on a port, for answers that are read while they come; gives a client."""
    import httpx2
    import uvicorn

    from sam2_jax.serve import app as serve_app

    monkeypatch.setattr(serve_app, "warm_up", lambda worker, predictor: worker.call(lambda: None))
    app = serve_app.make_app(predictor, Limits(), folder=str(tmp_path))
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="warning", timeout_graceful_shutdown=3)
    socket, server = config.bind_socket(), uvicorn.Server(config)
    socket.listen()
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    port = socket.getsockname()[1]
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        yield client
    server.should_exit = True
    thread.join()
