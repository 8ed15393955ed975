"""The command `sam2-jax`: what it is called with, its errors, and the cache of compiled programs.

Errors are one line on standard error and exit status 2.
"""

import argparse
import sys
import warnings
from typing import Any, NoReturn

from sam2_jax import __version__
from sam2_jax.commands import bench, evaluate, everything, image, serve, track, train
from sam2_jax.commands.common import cache_compiled_programs, use_huge_pages

_COMMANDS = {
    "image": image,
    "everything": everything,
    "track": track,
    "evaluate": evaluate,
    "bench": bench,
    "serve": serve,
}
_CONVERT_EXAMPLES = """examples:
  sam2-jax convert --input sam2.1_hiera_tiny.pt --output tiny/
  sam2-jax convert --input tiny/ --output sam2.1_hiera_tiny.safetensors"""


class _Parser(argparse.ArgumentParser):
    """Reports errors like `main` does: in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sam2-jax", description="Segment anything in images and videos, with JAX."
    )
    parser.add_argument("--version", action="version", version=f"sam2-jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, help: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    for name, command in _COMMANDS.items():
        command.add_arguments(add(name, command.HELP, command.EXAMPLES))
    convert = add("convert", "Convert checkpoints.", _CONVERT_EXAMPLES)
    convert.add_argument("arguments", nargs=argparse.REMAINDER)
    training = add("train", train.HELP, train.USAGE.format(program="sam2-jax train"))
    training.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    if argv is None:
        argv = sys.argv[1:]
        if argv[:1] == ["train"]:
            use_huge_pages()
    if argv[:1] == ["convert"]:  # the converter has a parser of its own
        from checkpoints_convert.convert import main as convert

        return convert(argv[1:], "sam2-jax convert")
    if argv[:1] == ["train"]:  # and so has training
        return train.main(argv[1:])
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            cache_compiled_programs()
            return _COMMANDS[args.command].run(args) or 0
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"sam2-jax {args.command}: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"sam2-jax {args.command}: interrupted", file=sys.stderr)
        return 130


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
