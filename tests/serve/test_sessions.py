import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from sam2_jax.serve import app as serve_app
from tests.serve.asking import click, opened, tracked


def test_sessions_at_once_get_what_each_gets_alone(live, video, programs):
    places = [(10 + 6 * i, 12 + 4 * i) for i in range(6)]

    def work(place):
        session = opened(live, video)
        first = click(live, session, x=place[0], y=place[1]).json()
        lines = tracked(live, session)
        live.delete(f"/api/sessions/{session}")
        return first, lines

    alone = [work(places[0])]
    compiled = dict(programs)
    alone += [work(place) for place in places[1:]]
    with ThreadPoolExecutor(len(places)) as pool:
        assert list(pool.map(work, places)) == alone
    assert len({json.dumps(result) for result in alone}) > 1
    assert dict(programs) == compiled  # one set of programs serves all


def slow(predictor, monkeypatch):
    """Makes every frame of tracking take a while."""
    propagate = type(predictor).propagate_in_video

    def slowly(*args, **kwargs):
        for result in propagate(predictor, *args, **kwargs):
            time.sleep(0.1)
            yield result

    monkeypatch.setattr(predictor, "propagate_in_video", slowly)


def test_while_one_tracks_others_click_and_cancelling_keeps_what_is_done(
    live, video, predictor, monkeypatch
):
    session, other = opened(live, video), opened(live, video)
    click(live, session)
    slow(predictor, monkeypatch)
    with live.stream("POST", f"/api/sessions/{session}/track", json={}) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["frame"] == 0
        assert click(live, other).status_code == 200
        busy = click(live, session, frame=1)
        assert busy.status_code == 409
        assert "cancel it first" in busy.json()["detail"]
        assert live.post(f"/api/sessions/{session}/track", json={}).status_code == 409
        assert live.get(f"/api/sessions/{session}").json()["is_tracking"]
        assert live.post(f"/api/sessions/{session}/cancel").json() == {"cancelled": True}
        *rest, last = map(json.loads, lines)
    assert last["cancelled"]
    assert last["num_frames"] < 6
    info = live.get(f"/api/sessions/{session}").json()
    assert info["frames_with_masks"] == list(range(len(rest) + 1))
    assert live.post(f"/api/sessions/{session}/cancel").json() == {"cancelled": False}
    assert click(live, session, frame=1).status_code == 200


def test_a_reader_that_goes_away_cancels(live, video, predictor, monkeypatch):
    session = opened(live, video)
    click(live, session)
    slow(predictor, monkeypatch)
    with live.stream("POST", f"/api/sessions/{session}/track", json={}) as answer:
        next(answer.iter_lines())
    wait_for(lambda: not live.get(f"/api/sessions/{session}").json()["is_tracking"])
    assert len(live.get(f"/api/sessions/{session}").json()["frames_with_masks"]) < 6


def test_closing_ends_tracking_and_removes_the_files(live, video, predictor, monkeypatch, tmp_path):
    session = opened(live, video)
    click(live, session)
    slow(predictor, monkeypatch)
    with live.stream("POST", f"/api/sessions/{session}/track", json={}) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert live.delete(f"/api/sessions/{session}").status_code == 204
        assert json.loads(list(lines)[-1])["cancelled"]
    assert not list(tmp_path.glob(f"*/{session}"))
    assert live.get(f"/api/sessions/{session}").status_code == 404


def test_a_frame_that_fails_ends_tracking_with_its_error(live, video, predictor, monkeypatch):
    session = opened(live, video)
    click(live, session)
    propagate = type(predictor).propagate_in_video

    def broken(*args, **kwargs):
        yield from list(propagate(predictor, *args, **kwargs))[:2]
        raise ValueError("frame 2 cannot be decoded")

    monkeypatch.setattr(predictor, "propagate_in_video", broken)
    assert tracked(live, session)[-1] == {"error": "frame 2 cannot be decoded"}
    assert click(live, session).status_code == 200


def test_unused_sessions_expire_and_used_ones_do_not(make_client, video, tmp_path):
    client = make_client(idle_minutes=1)
    sessions = client.app._app.state.sessions
    now = time.monotonic()
    sessions._clock = lambda: now
    used, unused = opened(client, video), opened(client, video)
    now += 50
    assert click(client, used).status_code == 200
    now += 50
    client.portal.call(sessions.close_unused)
    assert client.get(f"/api/sessions/{used}").status_code == 200
    gone = client.get(f"/api/sessions/{unused}")
    assert gone.status_code == 404
    assert "expired" in gone.json()["detail"]
    assert [path.name for path in tmp_path.glob("*/*/")] == [used]


def test_closing_a_session_during_a_download(client, video, monkeypatch):
    session = opened(client, video)
    click(client, session)
    sessions = client.app._app.state.sessions
    close = lambda *_: sessions._drop(sessions.get(session))
    monkeypatch.setattr(
        serve_app, "check_free_space", close
    )  # comes just before the file is written
    answer = client.get(f"/api/sessions/{session}/masks.json")
    assert answer.status_code == 404
    assert "it was closed" in answer.json()["detail"]


def test_a_failed_upload_leaves_nothing(client, tmp_path):
    assert client.post("/api/sessions", content=b"no video").status_code == 415
    assert client.post("/api/sessions", content=b"").status_code == 422
    assert not list(tmp_path.glob("*/*/"))
    assert len(client.app._app.state.sessions) == 0


def test_an_upload_that_breaks_off_leaves_nothing(live, tmp_path):
    head = "POST /api/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
    with socket.create_connection((live.base_url.host, live.base_url.port)) as raw:
        raw.sendall(head.encode() + b"x" * 100)
        wait_for(lambda: list(tmp_path.glob("*/*/upload")))
    wait_for(lambda: not list(tmp_path.glob("*/*/")))
    assert live.get("/api/info").status_code == 200


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
