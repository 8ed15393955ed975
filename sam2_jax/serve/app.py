"""The HTTP interface: addresses, what they take and give, and the page."""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import ClientDisconnect

import sam2_jax
from sam2_jax.data.masks import MAX_ID
from sam2_jax.predict.video import SAM2VideoPredictor
from sam2_jax.serve import downloads
from sam2_jax.serve.access import Guard
from sam2_jax.serve.folders import check_free_space, server_folder
from sam2_jax.serve.limits import Limits, Refused
from sam2_jax.serve.session import MAX_POINTS, Prompts
from sam2_jax.serve.sessions import Open, Sessions, check_upload_size, warm_up
from sam2_jax.serve.worker import Worker

_PAGE = Path(__file__).parent / "page"
_LONGEST_NAME = 100

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Id = Annotated[
    int, Field(ge=1, le=MAX_ID, description=f"object, 1 to {MAX_ID}: its pixel value in PNG masks")
]
Frame = Annotated[int, Field(ge=0, le=10**9, description="frame, from 0")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Rle(_Message):
    """A mask as COCO run lengths."""

    size: Annotated[tuple[int, int], Field(description="height, width", examples=[[480, 480]])]
    counts: Annotated[str, Field(max_length=4 << 20, examples=["PPYg0"])]


class PromptRequest(_Message):
    """Points, a box, both, or a mask; coordinates are pixels of the video."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"frame": 0, "object": 1, "points": [[210, 350]], "labels": [1]},
                {"frame": 0, "object": 1, "points": [[250, 220]], "labels": [0], "add": True},
                {"frame": 30, "object": 2, "box": [300, 0, 450, 400]},
            ]
        },
    )

    frame: Frame
    object: Id
    points: Annotated[list[tuple[Number, Number]], Field(max_length=MAX_POINTS)] = []
    labels: Annotated[
        list[Literal[0, 1]], Field(max_length=MAX_POINTS, description="1 object, 0 background")
    ] = []
    box: Annotated[
        tuple[Number, Number, Number, Number] | None, Field(description="x0, y0, x1, y1")
    ] = None
    mask: Rle | None = None
    add: Annotated[bool, Field(description="keep the points that the object has on this frame")] = (
        False
    )

    @model_validator(mode="after")
    def _check(self) -> "PromptRequest":
        if len(self.points) != len(self.labels):
            raise ValueError(
                f"{len(self.points)} points and {len(self.labels)} labels were given; "
                "one label a point is expected"
            )
        if self.mask and (self.points or self.box):
            raise ValueError("a mask was given with points or a box; send one or the other")
        if not (self.points or self.box or self.mask):
            raise ValueError("no prompt was given: send points with labels, a box, or a mask")
        return self


class TrackRequest(_Message):
    """Where to track; by default through the whole video, from the earliest prompt."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{}, {"start": 30, "count": 50, "direction": "forward"}]},
    )

    start: Annotated[Frame | None, Field(description="default: the earliest prompted frame")] = None
    count: Annotated[
        int | None, Field(ge=0, le=10**9, description="how many frames after it; default: all")
    ] = None
    direction: Literal["forward", "backward", "both"] = "both"


class Rename(_Message):
    """The name of an object."""

    name: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME, examples=["left dog"])]


class ObjectMask(BaseModel):
    """A mask of an object on a frame; `score` above 0 means visible, `iou` is the predicted quality."""

    object: int
    mask: Rle
    score: float
    iou: float


class FrameMasks(BaseModel):
    """The masks of a frame, for the objects that have one there."""

    frame: int
    objects: list[ObjectMask]


class ObjectInfo(BaseModel):
    """An object."""

    object: int
    name: str
    color: Annotated[str, Field(examples=["#2896ff"])]


class PromptInfo(BaseModel):
    """A prompt that was given."""

    frame: int
    object: int
    points: list[tuple[float, float]]
    labels: list[int]
    box: tuple[float, float, float, float] | None
    is_mask: bool


class SessionInfo(BaseModel):
    """A session: its video, objects, prompts, and which frames have masks."""

    id: str
    name: str
    height: int
    width: int
    num_frames: int
    fps: float
    notice: str | None
    objects: list[ObjectInfo]
    prompts: list[PromptInfo]
    frames_with_masks: list[int]
    can_undo: bool
    is_tracking: bool


class Problem(BaseModel):
    """Why a request was refused: what was given, what is expected, what to do."""

    detail: str


_TRACK_DOC = """Tracks all objects. The answer is NDJSON: a line for every frame as it is done, in the form of
`FrameMasks`, and a last line `{"done": true, "num_frames": n}`, `{"cancelled": true, "num_frames": n}` or
`{"error": "..."}`. Closing the connection cancels."""
_TRACK_EXAMPLE = (
    '{"frame": 0, "objects": [{"object": 1, "mask": {"size": [480, 480], "counts": "..."}, '
    '"score": 9.1, "iou": 0.93}]}\n{"done": true, "num_frames": 1}\n'
)
_REFUSALS = {
    code: {"model": Problem, "description": text}
    for code, text in {
        400: "not JSON, or cut off",
        401: "no token",
        403: "from another site",
        404: "no such session or object",
        409: "not now: being tracked, nothing to do, or too many objects",
        408: "the upload took too long",
        411: "no Content-Length",
        413: "beyond a limit",
        415: "neither a video nor a picture",
        422: "not as expected",
        503: "too many sessions",
        507: "disk full",
    }.items()
}


def make_app(
    predictor: SAM2VideoPredictor,
    limits: Limits,
    token: str | None = None,
    only_loopback: bool = True,
    folder: str | None = None,
) -> Guard:
    """Makes the application; its worker and its folder are made when it starts.

    Args:
      predictor: the model that all sessions share.
      limits: what it accepts.
      token: the secret that every request must carry; None lets everybody in.
      only_loopback: whether it is for this machine only.
      folder: where its files go; None is the system's temporary folder.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with server_folder(folder) as own:
            worker = Worker()
            app.state.sessions = Sessions(predictor, limits, own, worker)
            app.state.warm = warm_up(worker, predictor)
            sweep = asyncio.create_task(_sweep(app.state.sessions))
            try:
                yield
            finally:
                sweep.cancel()
                await asyncio.to_thread(worker.close)

    app = FastAPI(
        title="sam2_jax",
        version=sam2_jax.__version__,
        summary="Segment what is pointed at, and track it through a video.",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        responses=_REFUSALS,
    )
    app.state.limits = limits
    app.state.model = predictor.model
    _add_error_handlers(app)
    _add_sessions(app)
    _add_work(app)
    _add_downloads(app)
    app.mount("/page", StaticFiles(directory=_PAGE))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html")

    return Guard(app, token, only_loopback)


async def _sweep(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(min(30.0, 15 * sessions.limits.idle_minutes))
        await sessions.close_unused()


def _add_error_handlers(app: FastAPI) -> None:
    def problem(status: int, message: str) -> JSONResponse:
        return JSONResponse({"detail": message}, status)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return problem(error.status, error.message)

    @app.exception_handler(ValueError)
    async def value(_: Request, error: ValueError) -> JSONResponse:
        return problem(422, str(error))

    @app.exception_handler(OSError)
    async def system(_: Request, error: OSError) -> JSONResponse:
        return problem(507, error.strerror or str(error))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return problem(400, "The connection was lost before the upload was complete.")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return problem(422, "; ".join(text.removeprefix(": ") for text in said))


def _sessions(request: Request) -> Sessions:
    return request.app.state.sessions


async def _info(sessions: Sessions, used: Open) -> dict[str, Any]:
    described = await sessions.call(used, used.session.describe)
    return _with_video(used, described)


def _with_video(used: Open, described: dict) -> dict[str, Any]:
    return {
        "id": used.id,
        "name": used.name,
        **used.about,
        **described,
        "is_tracking": used.task is not None,
    }


def _add_sessions(app: FastAPI) -> None:
    @app.get("/api/info")
    def info() -> dict[str, Any]:
        """The model, and the limits of this server."""
        model, limits = app.state.model, app.state.limits
        return {
            "model": model.name,
            "image_size": model.config.image_size,
            "version": sam2_jax.__version__,
            "is_ready": app.state.warm.done(),
            "limits": {
                "upload_mb": limits.upload_mb,
                "seconds": limits.seconds,
                "frames": limits.frames,
                "objects": limits.objects,
                "sessions": limits.sessions,
                "idle_minutes": limits.idle_minutes,
            },
        }

    @app.post(
        "/api/sessions",
        status_code=201,
        response_model=SessionInfo,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
                },
            }
        },
    )
    async def open_session(
        request: Request,
        name: Annotated[str, Query(max_length=1000, examples=["dogs.mp4"])] = "video",
    ) -> dict:
        """Opens a session on a video or a picture, whose bytes are the body of the request."""
        sessions = _sessions(request)
        length = request.headers.get("content-length", "0")
        check_upload_size(int(length) if length.isdecimal() else 0, sessions.limits)
        used = await sessions.open_upload(_shown_name(name), request.stream())
        return await _info(sessions, used)

    @app.post("/api/sessions/sample", status_code=201, response_model=SessionInfo)
    async def open_sample(request: Request) -> dict:
        """Opens a session on the sample clip."""
        sessions = _sessions(request)
        return await _info(sessions, await sessions.open_sample())

    @app.get("/api/sessions/{session}", response_model=SessionInfo)
    async def get_session(request: Request, session: str) -> dict:
        """Describes a session."""
        sessions = _sessions(request)
        return await _info(sessions, sessions.get(session))

    @app.delete("/api/sessions/{session}", status_code=204)
    async def close_session(request: Request, session: str) -> None:
        """Closes a session: its tracking ends and its files are removed."""
        sessions = _sessions(request)
        await sessions.close(sessions.get(session))

    @app.get("/api/sessions/{session}/frames/{frame}.jpg", response_class=FileResponse)
    async def get_frame(request: Request, session: str, frame: int) -> FileResponse:
        """A frame as JPEG, in the size that masks and points refer to."""
        used = _sessions(request).get(session)
        if not 0 <= frame < used.about["num_frames"]:
            last = used.about["num_frames"] - 1
            raise Refused(404, f"There is no frame {frame}: the video has frames 0 to {last}.")
        path = os.path.join(used.folder, "frames", f"{frame:05d}.jpg")
        return FileResponse(path, headers={"cache-control": "private, max-age=3600, immutable"})


def _add_work(app: FastAPI) -> None:
    @app.post("/api/sessions/{session}/prompts", response_model=FrameMasks)
    async def prompt(request: Request, session: str, asked: PromptRequest) -> dict:
        """Prompts an object on a frame; returns the masks of all objects there."""
        sessions = _sessions(request)
        used = sessions.get(session)
        given = Prompts(tuple(asked.points), tuple(asked.labels), asked.box, asked.mask is not None)
        rle = asked.mask.model_dump() if asked.mask else None
        change = used.session.prompt
        return await sessions.change(used, change, asked.frame, asked.object, given, rle, asked.add)

    @app.delete("/api/sessions/{session}/prompts", response_model=FrameMasks)
    async def clear(
        request: Request,
        session: str,
        frame: Annotated[Frame, Query()],
        object: Annotated[Id, Query()],
    ) -> dict:
        """Removes the prompts of an object on a frame."""
        sessions = _sessions(request)
        used = sessions.get(session)
        return await sessions.change(used, used.session.clear, frame, object)

    @app.get("/api/sessions/{session}/masks/{frame}", response_model=FrameMasks)
    async def get_masks(request: Request, session: str, frame: int) -> dict:
        """The masks of a frame, as they are now."""
        sessions = _sessions(request)
        used = sessions.get(session)
        return await sessions.call(used, used.session.frame_masks, frame)

    @app.delete("/api/sessions/{session}/objects/{object}", response_model=SessionInfo)
    async def remove(request: Request, session: str, object: Id) -> dict:
        """Removes an object."""
        sessions = _sessions(request)
        used = sessions.get(session)
        return _with_video(used, await sessions.change(used, used.session.remove, object))

    @app.patch("/api/sessions/{session}/objects/{object}", response_model=SessionInfo)
    async def rename(request: Request, session: str, object: Id, asked: Rename) -> dict:
        """Names an object."""
        sessions = _sessions(request)
        used = sessions.get(session)
        described = await sessions.call(used, used.session.rename, object, asked.name)
        return _with_video(used, described)

    @app.post("/api/sessions/{session}/undo", response_model=SessionInfo)
    async def undo(request: Request, session: str) -> dict:
        """Undoes the last prompt, clearing, removal or tracking; up to 30 in a row."""
        sessions = _sessions(request)
        used = sessions.get(session)
        return _with_video(used, await sessions.change(used, used.session.undo))

    @app.post(
        "/api/sessions/{session}/track",
        description=_TRACK_DOC,
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {"example": _TRACK_EXAMPLE}}}},
    )
    async def track(
        request: Request, session: str, asked: Annotated[TrackRequest, Body()]
    ) -> StreamingResponse:
        sessions = _sessions(request)
        directions = {"forward": (False,), "backward": (True,), "both": (False, True)}
        results = await sessions.track(
            sessions.get(session), asked.start, asked.count, directions[asked.direction]
        )
        lines = (json.dumps(result) + "\n" async for result in results)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    @app.post("/api/sessions/{session}/cancel")
    async def cancel(request: Request, session: str) -> dict[str, bool]:
        """Stops tracking after the current frame; what was tracked is kept."""
        sessions = _sessions(request)
        return {"cancelled": sessions.cancel(sessions.get(session))}


def _add_downloads(app: FastAPI) -> None:
    async def download(request: Request, session: str, kind: str, write: Any) -> FileResponse:
        sessions = _sessions(request)
        used = sessions.get(session)
        names, found = await sessions.call(used, used.session.results)
        if not found:
            raise Refused(409, "There are no masks yet: click on an object or track it first.")
        check_free_space(used.folder, sessions.limits.free_mb)
        path = os.path.join(used.folder, kind)
        used.num_downloads += 1
        try:
            await asyncio.to_thread(write, path, used, names, found)
        finally:
            used.num_downloads -= 1
        stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", used.name)
        disposition = f"attachment; filename*=UTF-8''{quote(f'{stem}_{kind}', safe='')}"
        return FileResponse(path, headers={"content-disposition": disposition})

    @app.get("/api/sessions/{session}/masks.zip", response_class=FileResponse)
    async def masks_zip(request: Request, session: str) -> FileResponse:
        """PNGs, one for each frame with masks; pixel values are object ids, 16 bits for ids above 254."""
        write = lambda path, used, names, found: downloads.write_png_zip(path, found)
        return await download(request, session, "masks.zip", write)

    @app.get("/api/sessions/{session}/masks.json", response_class=FileResponse)
    async def masks_json(request: Request, session: str) -> FileResponse:
        """COCO run lengths by frame and object, with names and scores."""

        def write(path: str, used: Open, names: dict, found: dict) -> None:
            downloads.write_rle_json(path, used.name, used.session.frames, names, found)

        return await download(request, session, "masks.json", write)

    @app.get("/api/sessions/{session}/overlay.mp4", response_class=FileResponse)
    async def overlay(request: Request, session: str) -> FileResponse:
        """The video with the masks drawn over it."""

        def write(path: str, used: Open, names: dict, found: dict) -> None:
            downloads.write_overlay(path, used.session.frames, found)

        return await download(request, session, "overlay.mp4", write)


def _shown_name(name: str) -> str:
    """The last part of a name, without what cannot be shown; it is never used as a path."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(c for c in last if c.isprintable()).strip()
    return shown[:_LONGEST_NAME] or "video"
