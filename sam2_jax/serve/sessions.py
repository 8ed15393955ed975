"""The sessions of a server: opened from uploads, found by id, closed when nobody uses them.

Everything here runs in the event loop, except where it says `to_thread` or `worker`.
"""

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from fractions import Fraction
from typing import Any

from sam2_jax.data.videos import ImageFolder
from sam2_jax.predict.store import DEFAULT_LIMIT
from sam2_jax.predict.video import SAM2VideoPredictor
from sam2_jax.serve import sample
from sam2_jax.serve.folders import check_free_space
from sam2_jax.serve.limits import Limits, Refused
from sam2_jax.serve.session import Session
from sam2_jax.serve.unpack import unpack
from sam2_jax.serve.worker import Task, Worker

_UNPACKING = 2  # uploads that are decoded at once
_NO_SESSION = Refused(
    404,
    "There is no such session: it was closed, expired, or the server was restarted. "
    "Open the video again.",
)


class Upload(ImageFolder):
    """The frames that `unpack` wrote, with the times and the shape of pixels of what was uploaded."""

    def __init__(self, folder: str, about: dict[str, Any]):
        super().__init__(folder)
        self.fps, self.pixel_aspect = about["fps"], Fraction(*about["pixel_aspect"])
        self._times = about["times"]

    def time(self, index: int) -> float:
        """When a frame is shown, seconds since the first."""
        return self._times[index]


class Open:
    """An open session and its use.

    Attributes:
      id: secret; names the session in URLs.
      name: what the user calls the video; only ever shown, never a path.
      folder: holds its files; removed with the session.
      about: size, length and rate of the video.
      opened: None while the upload is being read, and once the session is closed.
      task: the tracking that is in progress, or None.
    """

    def __init__(self, name: str, folder: str, now: float):
        self.id = os.path.basename(folder)
        self.name, self.folder = name, folder
        self.about: dict[str, Any] = {}
        self.opened: Session | None = None
        self.task: Task | None = None
        self.last_used = now
        self.turn = (
            asyncio.Lock()
        )  # one call of a session at a time, so that none crowds the others out
        self.num_downloads = 0

    @property
    def session(self) -> Session:
        """Its video and objects.

        Raises:
          Refused: the upload is still being read, or the session was closed.
        """
        if self.opened is None:
            raise _NO_SESSION
        return self.opened


class Sessions:
    """All open sessions. `worker` is the only thread that touches the predictor."""

    def __init__(
        self,
        predictor: SAM2VideoPredictor,
        limits: Limits,
        folder: str,
        worker: Worker,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._predictor, self.limits, self._folder, self._worker = (
            predictor,
            limits,
            folder,
            worker,
        )
        self._clock = clock
        self._open: dict[str, Open] = {}
        self._unpacking = asyncio.Semaphore(_UNPACKING)

    def __len__(self) -> int:
        return len(self._open)

    def get(self, session_id: str) -> Open:
        """Finds a session, which counts as using it.

        Raises:
          Refused: there is none, or its upload is still being read.
        """
        found = self._open.get(session_id)
        if found is None or found.opened is None:
            raise _NO_SESSION
        found.last_used = self._clock()
        return found

    async def open_upload(self, name: str, chunks: AsyncIterator[bytes]) -> Open:
        """Opens a session on a file that arrives in chunks.

        Raises:
          Refused: too many sessions, too large, too slow, or not a video or picture that can be read.
        """

        async def fill(new: Open, frames: str) -> dict:
            upload = os.path.join(new.folder, "upload")
            await self._receive(upload, chunks)
            async with self._unpacking:
                about = await asyncio.to_thread(unpack, upload, frames, self.limits)
            os.remove(upload)
            return about

        return await self._open_with(name, fill)

    async def open_sample(self) -> Open:
        """Opens a session on the sample clip."""

        async def fill(new: Open, frames: str) -> dict:
            return await asyncio.to_thread(sample.write, frames, self.limits)

        return await self._open_with("sample clip", fill)

    async def _open_with(self, name: str, fill: Callable) -> Open:
        if len(self._open) >= self.limits.sessions:
            raise Refused(
                503,
                f"{len(self._open)} sessions are open, the most that this server allows: close one or "
                f"try again later. Unused ones are closed after {self.limits.idle_minutes:g} minutes.",
            )
        check_free_space(self._folder, self.limits.free_mb)
        new = Open(name, os.path.join(self._folder, secrets.token_urlsafe(16)), self._clock())
        self._open[new.id] = new
        try:
            frames = os.path.join(new.folder, "frames")
            os.makedirs(frames)
            new.about = await fill(new, frames)
            memory = DEFAULT_LIMIT // self.limits.sessions
            make = lambda: Session(
                self._predictor, Upload(frames, new.about), new.folder, memory, self.limits
            )
            new.opened = await self.call(new, make)
        except BaseException:
            self._drop(new)
            raise
        return new

    async def _receive(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        size, most = 0, self.limits.upload_mb << 20
        try:
            async with asyncio.timeout(60 * self.limits.idle_minutes):
                with open(path, "wb") as file:
                    async for chunk in chunks:
                        size += len(chunk)
                        check_upload_size(size, self.limits)
                        await asyncio.to_thread(file.write, chunk)
                        if size % (16 << 20) < len(chunk):
                            check_free_space(self._folder, self.limits.free_mb)
        except TimeoutError as error:
            raise Refused(408, "The upload took too long and was stopped; try again.") from error
        if size == 0:
            raise Refused(
                422,
                f"The upload is empty: send the bytes of a video or a picture, at most {most >> 20} MiB.",
            )

    async def call(self, used: Open, function: Callable, *args: Any) -> Any:
        """Runs a function for a session in the worker, before tracking continues."""
        async with used.turn:
            self._check_open(used)
            return await asyncio.wrap_future(self._worker.call(function, *args))

    async def change(self, used: Open, function: Callable, *args: Any) -> Any:
        """As `call`, for what must not happen while the session is being tracked."""
        async with used.turn:
            self._check_open(used)
            self._check_idle(used)
            return await asyncio.wrap_future(self._worker.call(function, *args))

    def _check_open(self, used: Open) -> None:
        if used.id not in self._open:
            raise _NO_SESSION

    def _check_idle(self, used: Open) -> None:
        if used.task is not None:
            raise Refused(
                409, "The session is being tracked: wait for the end, or cancel it first."
            )

    async def track(
        self,
        used: Open,
        start: int | None,
        count: int | None,
        directions: tuple[bool, ...],
    ) -> AsyncIterator[dict]:
        """Starts tracking; returns an iterator over the masks of each frame.

        If the reader disconnects, tracking is cancelled.

        Raises:
          Refused: it is being tracked already, or there is nothing to track.
        """
        await self.change(used, used.session.check_can_track, start)
        self._check_idle(used)  # another request may have been faster
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue()

        def end(error: BaseException | None) -> None:
            used.task = None
            arrived.put_nowait((None, error))

        task = used.task = self._worker.start(
            used.session.track(start, count, directions),
            emit=lambda item: loop.call_soon_threadsafe(arrived.put_nowait, (item, None)),
            finish=lambda error: loop.call_soon_threadsafe(end, error),
        )
        return self._arriving(used, task, arrived)

    async def _arriving(
        self, used: Open, task: Task, arrived: asyncio.Queue
    ) -> AsyncIterator[dict]:
        count = 0
        try:
            while (arrival := await arrived.get())[0] is not None:
                used.last_used = self._clock()
                count += 1
                yield arrival[0]
            how = "cancelled" if task.is_cancelled else "done"
            error = arrival[1]
            yield {"error": str(error)} if error else {how: True, "num_frames": count}
        finally:
            task.cancel()

    def cancel(self, used: Open) -> bool:
        """Stops tracking after the current frame; returns whether there was any to stop."""
        if used.task is None:
            return False
        used.task.cancel()
        return True

    async def close(self, used: Open) -> None:
        """Ends a session and removes its files."""
        self.cancel(used)
        self._open.pop(used.id, None)
        await asyncio.wrap_future(self._worker.call(lambda: None))  # waits for the current step
        self._drop(used)

    def _drop(self, used: Open) -> None:
        self._open.pop(used.id, None)
        used.opened = None
        shutil.rmtree(used.folder, ignore_errors=True)

    async def close_unused(self) -> None:
        """Closes sessions that have been idle for longer than the limit."""
        latest = self._clock() - 60 * self.limits.idle_minutes
        for used in list(self._open.values()):
            is_busy = used.opened is None or used.task is not None or used.num_downloads
            if used.last_used < latest and not is_busy:
                await self.close(used)


def check_upload_size(size: int, limits: Limits) -> None:
    """Raises `Refused` if an upload is larger than the limits allow."""
    if size > limits.upload_mb << 20:
        raise Refused(
            413,
            f"The upload is larger than {limits.upload_mb} MiB, the most that this server allows: "
            "cut the video or save it at a smaller size.",
        )


def warm_up(worker: Worker, predictor: SAM2VideoPredictor) -> Future:
    """Compiles the programs that a first click and a first pass need, before anybody waits for them."""

    def run() -> None:
        state = predictor.init_state(sample.frames(2))
        height, width = state.frames.height, state.frames.width
        predictor.add_new_points_or_box(state, 0, 1, [[width / 2, height / 2]], [1])
        for _ in predictor.propagate_in_video(state, return_logits=False):
            pass
        predictor.add_new_points_or_box(state, 1, 1, [[width / 3, height / 2]], [1])

    return worker.call(run)
