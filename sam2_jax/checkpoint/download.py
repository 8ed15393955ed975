"""Downloads the official checkpoints: resumed after an interruption, checked at the end."""

import contextlib
import email.message
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from sam2_jax import config
from sam2_jax.checkpoint import bundled
from sam2_jax.files import cache_folder
from sam2_jax.files import sha256 as sha256_of

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything_2"


def official_url(model: str) -> str:
    """Returns the address of a released checkpoint.

    Raises:
      ValueError: for an unknown model; the message lists the known ones.
    """
    name = config.resolve_model_name(model)
    release = "092824" if name.startswith("sam2.1_") else "072824"
    return f"{BASE_URL}/{release}/{name}.pt"


def cached_checkpoint(model: str) -> Path:
    """Returns the official file of a model in the user's cache or Hugging Face's, else downloads it.

    Raises:
      ValueError: for an unknown model; the message lists the known ones.
      FileNotFoundError: when it is not cached and cannot be fetched; the message says what to fetch
        and where to put it.
    """
    name = config.resolve_model_name(model)
    if (of_hub := _in_hub_cache(name)) is not None:
        return of_hub
    path = cache_folder() / f"{name}.pt"
    if not path.exists():
        try:
            fetch(official_url(model), path)
        except ConnectionError as error:
            raise FileNotFoundError(str(error)) from error
    return path


def _in_hub_cache(name: str) -> Path | None:
    """The file of a model that Hugging Face's own tools have fetched, where they keep it."""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    repository = f"models--facebook--{name.replace('_', '-')}"
    return next(folder.glob(f"{repository}/snapshots/*/{name}.pt"), None)


def find_weights(path: str | os.PathLike) -> Path:
    """Returns a path, or the file of the model that is named instead of one: bundled, cached or downloaded.

    Raises:
      FileNotFoundError: it is neither there nor can it be fetched.
    """
    if not os.path.exists(path):
        with contextlib.suppress(ValueError):
            name = config.resolve_model_name(os.fspath(path))
            return bundled.WEIGHTS if name == bundled.NAME else cached_checkpoint(name)
    return Path(path)


def fetch(url: str, path: str | os.PathLike, sha256: str | None = None) -> str:
    """Downloads `url` to `path`, going on from `<path>.part` when there is one.

    Args:
      url: what to fetch.
      path: where to put it; nothing is there before it is complete and checked.
      sha256: the expected checksum, in hexadecimal.

    Returns:
      The SHA-256 of the file, in hexadecimal.

    Raises:
      ConnectionError: when the server cannot be reached, refuses or breaks off.
      ValueError: when the checksum is wrong.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch_rest(url, part)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{url} cannot be fetched ({error}). Run this again to go on, or fetch that file on "
            f"another machine and put it at {path}."
        ) from error
    try:
        digest = check_sha256(part, sha256)
    except ValueError:
        part.unlink()  # going on from it would never help
        raise
    os.replace(part, path)
    return digest


def check_sha256(path: Path, expected: str | None) -> str:
    """Returns the SHA-256 of a file, in hexadecimal.

    Raises:
      ValueError: when it is not the expected one.
    """
    digest = sha256_of(path)
    if expected is not None and digest != expected.lower():
        raise ValueError(f"{path} has the SHA-256 {digest}, not {expected}. Fetch it again.")
    return digest


def _fetch_rest(url: str, part: Path) -> None:
    """Completes `part`; raises ConnectionError when bytes are missing at the end."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and _total(error.headers) == have:
            return
        raise
    with response:
        if response.status != 206:  # the server sends the whole file
            have = 0
        elif not (response.headers["Content-Range"] or "").startswith(f"bytes {have}-"):
            raise ConnectionError("the server answered with another range")
        total = have + int(response.headers["Content-Length"])
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if (size := part.stat().st_size) != total:
        raise ConnectionError(f"only {size} of {total} bytes arrived")


def _total(headers: email.message.Message) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d+)", headers["Content-Range"] or "")
    return int(match[1]) if match else None
