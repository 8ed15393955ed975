"""Converts checkpoints between PyTorch, safetensors and this project's format.

Run `python -m checkpoints_convert --help` for examples.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from sam2_jax import checkpoint, config
from sam2_jax.checkpoint import bundled, download
from sam2_jax.commands.outputs import File, Folder, check_outputs

_EXAMPLES = """examples:
  {program} --input sam2.1_hiera_tiny.pt --output tiny
  {program} --input tiny --output sam2.1_hiera_tiny.pt
  {program} --input runs/nano@best --output nano
  {program} --download sam2.1_hiera_tiny --output tiny
"""


def main(argv: Sequence[str] | None = None, program: str = "python -m checkpoints_convert") -> int:
    """Runs the command line, typed as `program` with arguments; returns the exit status."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _print_warning
            _run(_parser(program).parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    if args.input and not args.output:
        raise ValueError("--input needs --output; see --help")
    if args.output:
        _check_output(args.output, args.input)
    start = time.perf_counter()
    source, output = args.input, args.output
    if args.download:
        source, output = _download(args.download, output, args.sha256)
    loaded = checkpoint.load(source, args.download or args.model)
    if source != output:
        checkpoint.save(output, loaded)
    arrays = jax.tree.leaves(loaded.params)
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    seconds = time.perf_counter() - start
    print(f"{loaded.name}: {len(arrays)} tensors, {megabytes:.1f} MB, {seconds:.1f} s -> {output}")


def _check_output(output: Path, source: str | None) -> None:
    """A folder is replaced as a whole, so that it must not hold what is read."""
    is_file = output.suffix in (".pt", ".safetensors")
    check = (
        File("--output", output, (output.suffix,))
        if is_file
        else Folder("--output", output, ("*",))
    )
    check_outputs([check], [source] if source else [])


def _download(model: str, output: Path | None, sha256: str | None) -> tuple[Path, Path]:
    """Makes sure that the official file is there; returns its path and that of the output."""
    name = config.resolve_model_name(model)
    if name == bundled.NAME:
        print(f"{name} comes with the package: {bundled.WEIGHTS}")
        download.check_sha256(bundled.WEIGHTS, sha256)
        return bundled.WEIGHTS, output or Path(bundled.WEIGHTS.name)
    output = output or Path(f"{name}.pt")
    path = output if output.suffix == ".pt" else output.absolute().parent / f"{name}.pt"
    if path.exists():
        digest = download.check_sha256(path, sha256)
    else:
        digest = download.fetch(download.official_url(name), path, sha256)
    print(f"{path}: SHA-256 {digest}")
    return path, output


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Reports errors like `main` does: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        description="Converts SAM 2 checkpoints, strictly and without loss.",
        epilog=_EXAMPLES.format(program=program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        metavar="PATH",
        help=".pt, .safetensors, a folder with a model.safetensors or its shards, this project's folder, or a "
        "training run: RUN for its newest checkpoint, RUN@best, RUN/checkpoints/N",
    )
    source.add_argument("--download", metavar="MODEL", help="fetch the official file of a model")
    parser.add_argument(
        "--output",
        "--out",
        type=Path,
        metavar="PATH",
        help=".pt or .safetensors, else a folder in this project's format",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="what --input is; default: recognised from its tensors"
    )
    parser.add_argument(
        "--sha256", metavar="HEX", help="refuse a download that has another checksum"
    )
    return parser
