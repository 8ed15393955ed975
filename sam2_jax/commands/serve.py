"""`sam2-jax serve`: a page to click on, and the interface under it."""

import argparse
import re
import secrets
import socket

from sam2_jax.commands.common import add_model, build
from sam2_jax.serve.access import is_loopback
from sam2_jax.serve.limits import Limits

HELP = "Serve a page to click on, and an HTTP interface for other tools."
EXAMPLES = """examples:
  sam2-jax serve                                            # http://127.0.0.1:8000, this machine only
  sam2-jax serve --checkpoint sam2.1_hiera_tiny.pt --image-size 512
  sam2-jax serve --host 0.0.0.0 --token "$TOKEN" --sessions 20 --max-upload 500"""

_LIMITS = {
    "--max-upload": ("upload_mb", int, "MiB", "size of an uploaded file"),
    "--max-seconds": ("seconds", float, "S", "duration of a video"),
    "--max-frames": ("frames", int, "N", "frames of a video"),
    "--max-objects": ("objects", int, "N", "objects of a session"),
    "--sessions": ("sessions", int, "N", "sessions that are open at once"),
    "--idle-minutes": ("idle_minutes", float, "MIN", "unused sessions are closed after this time"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port (%(default)s)")
    parser.add_argument(
        "--token",
        help="secret that every user needs; a server for other machines always has one, "
        "generated and printed if it is not given",
    )
    for option, (field, kind, unit, text) in _LIMITS.items():
        default = getattr(Limits, field)
        parser.add_argument(
            option,
            dest=field,
            type=kind,
            default=default,
            metavar=unit,
            help=f"{text} ({default:g})",
        )
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command until it is interrupted."""
    limits = Limits(**{field: getattr(args, field) for field, *_ in _LIMITS.values()})
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port is {args.port}; a number within 0..65535 is expected")
    only_loopback = is_loopback(args.host)
    token = args.token or (None if only_loopback else secrets.token_urlsafe(24))
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]{8,}", token):
        raise ValueError(
            f"--token has {len(token)} characters; at least 8 are expected, letters, digits and ._~- only"
        )
    try:
        import uvicorn

        from sam2_jax.serve.app import make_app
    except ImportError as error:
        raise ValueError(
            f"serving needs packages that are not installed ({error}): pip install 'sam2-jax[serve]'"
        ) from error
    from sam2_jax import build_sam2_video_predictor

    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    try:
        listening = socket.create_server((args.host, args.port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {args.host} port {args.port} ({error.strerror}): "
            "choose another --host or --port"
        ) from error
    with listening:
        predictor = build(args, build_sam2_video_predictor)
        app = make_app(predictor, limits, token, only_loopback)
        port = listening.getsockname()[1]
        print(f"open {_address(args.host, port, token)}  (Ctrl-C ends)", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3, ws="none")
        uvicorn.Server(config).run([listening])


def _address(host: str, port: int, token: str | None) -> str:
    """What to open in a browser, from another machine if the server is for others as well."""
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
