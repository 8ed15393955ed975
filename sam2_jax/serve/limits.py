"""What a server accepts, and how it refuses the rest."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a server and of each of its sessions.

    Attributes:
      upload_mb: size of an uploaded file, MiB.
      seconds: duration of a video.
      frames: frames of a video.
      objects: objects of a session.
      sessions: sessions that are open at once.
      idle_minutes: a session that is unused for this long is closed.
      pixels: size of a frame.
      unpacked_mb: frames of a session on disk, MiB.
      unpack_seconds: time to decode an upload.
      free_mb: disk space that is always kept free, MiB.
    """

    upload_mb: int = 200
    seconds: float = 120.0
    frames: int = 1800
    objects: int = 16
    sessions: int = 64
    idle_minutes: float = 60.0
    pixels: int = 4096 * 2304
    unpacked_mb: int = 2048
    unpack_seconds: float = 300.0
    free_mb: int = 512

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"the limit {field.name} is {value}; a number above 0 is expected")


class Refused(Exception):
    """A request that cannot be met.

    Attributes:
      status: the HTTP status.
      message: what was given, what is expected, what to do.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message
