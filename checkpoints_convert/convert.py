"""Converts checkpoints between PyTorch, safetensors and this project's format.

Run `python -m checkpoints_convert --help` for examples.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from checkpoints_convert import download, hiera, names, torch_file
from sam2_jax import checkpoint, config
from sam2_jax.model import sam2

_EXAMPLES = """examples:
  python -m checkpoints_convert --input sam2.1_hiera_tiny.pt --output tiny
  python -m checkpoints_convert --input tiny --output sam2.1_hiera_tiny.pt
  python -m checkpoints_convert --download sam2.1_hiera_tiny --output tiny
"""


def load_checkpoint(
    path: str | os.PathLike, model: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Loads a checkpoint of any kind, strictly.

    Args:
      path: a `.pt` file, a `.safetensors` file with official or Hugging Face names, a folder with
        a `model.safetensors`, a folder in this project's format, or that of a training run.
      model: name of the model, in any spelling; recognised from the tensors when None.

    Returns:
      The name of the model and its parameters, a nested dict of float32 numpy arrays.

    Raises:
      FileNotFoundError: when there is no such file or folder.
      ValueError: when the file is damaged, of no known kind, or does not fit the model; the message
        names every missing, unexpected and wrong-shaped tensor.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    name = None if model is None else config.resolve_model_name(model)
    if checkpoint.is_params_folder(path):
        saved, params = checkpoint.load_params(path)
        if name not in (None, saved):
            raise ValueError(f"{path} holds {saved}, not {name}.")
        names.to_state_dict(params, _shapes(saved, checkpoint.saved_overrides(path)))
        return saved, params
    if (path / "checkpoints").is_dir():
        from sam2_jax.train.loop import newest_params

        saved, params = newest_params(path)
        if name not in (None, saved):
            raise ValueError(f"{path} is a run of {saved}, not of {name}.")
        names.to_state_dict(params, _expected(saved))
        return saved, params
    return _whole_model(path, _read_tensors(path), name)


def _whole_model(
    path: Path, state_dict: Mapping[str, np.ndarray], name: str | None
) -> tuple[str, dict[str, Any]]:
    if hiera.is_hiera(state_dict):
        raise ValueError(
            f"{path} holds a Hiera, which is only the trunk of a SAM 2: training can begin with it "
            "(--config.init_from)."
        )
    try:
        name = name or names.recognise({key: array.shape for key, array in state_dict.items()})
        return name, names.to_params(state_dict, _expected(name))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_start(
    path: str | os.PathLike, model: str, draw: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Loads parameters to begin training with: those of a checkpoint, or of a Hiera as its trunk.

    Args:
      path: as for `load_checkpoint`, or a file with released Hiera weights.
      model: name of the model, in any spelling.
      draw: returns random parameters of it; called for what a Hiera does not have.

    Raises:
      FileNotFoundError: when there is no such file or folder.
      ValueError: when it is damaged, of no known kind, or does not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        return load_checkpoint(path, model)[1]
    tensors = _read_tensors(path)
    if not hiera.is_hiera(tensors):
        return _whole_model(path, tensors, config.resolve_model_name(model))[1]
    drawn = draw()
    try:
        trunk = hiera.trunk_tensors(tensors, names.official_shapes(drawn))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return names.to_params(names.to_state_dict(drawn, drawn) | trunk, drawn)


def save_checkpoint(
    path: str | os.PathLike,
    model: str,
    params: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Saves parameters as `.pt`, as `.safetensors` (both with official names) or as a folder.

    Args:
      path: its suffix decides; anything else than the two is a folder in this project's format.
      model: name of the model, in any spelling.
      params: nested dict of float32 arrays.
      overrides: as `sam2_jax.checkpoint.save_params` takes them; only a folder remembers them.

    Raises:
      FileExistsError: when the folder exists and holds something else.
      ValueError: when the parameters do not fit the model.
    """
    name = config.resolve_model_name(model)
    state_dict = names.to_state_dict(params, _shapes(name, overrides))
    match Path(path).suffix:
        case ".pt":
            torch_file.write_torch_file(path, state_dict)
        case ".safetensors":
            from safetensors.numpy import save_file

            contiguous = {key: np.ascontiguousarray(array) for key, array in state_dict.items()}
            with torch_file.replacing(path) as temporary:
                # Transformers refuses files that do not name a format.
                save_file(contiguous, temporary, metadata={"format": "pt"})
        case _:
            checkpoint.save_params(path, name, params, overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        args = _parser().parse_args(argv)
        if args.input and not args.output:
            raise ValueError("--input needs --output; see --help")
        start = time.perf_counter()
        source, output = args.input, args.output
        if args.download:
            source, output = _download(args.download, output, args.sha256)
        name, params = load_checkpoint(source, args.download or args.model)
        if source != output:
            save_checkpoint(output, name, params, checkpoint.saved_overrides(source))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    arrays = jax.tree.leaves(params)
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    seconds = time.perf_counter() - start
    print(f"{name}: {len(arrays)} tensors, {megabytes:.1f} MB, {seconds:.1f} s -> {output}")
    return 0


def _download(model: str, output: Path | None, sha256: str | None) -> tuple[Path, Path]:
    """Makes sure that the official file is there; returns its path and that of the output."""
    name = config.resolve_model_name(model)
    output = output or Path(f"{name}.pt")
    path = output if output.suffix == ".pt" else output.absolute().parent / f"{name}.pt"
    if path.exists():
        digest = download.check_sha256(path, sha256)
    else:
        digest = download.fetch(download.official_url(name), path, sha256)
    print(f"{path}: SHA-256 {digest}")
    return path, output


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads a `.pt` or `.safetensors` file, or the one in a folder, as {official name: array}."""
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"The folder {path.parent} holds neither a model.safetensors nor a model.json of "
                "this project."
            )
    if path.suffix != ".safetensors":
        return torch_file.read_torch_file(path)

    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    return names.from_hugging_face(tensors) if names.is_hugging_face(tensors) else tensors


@functools.cache
def _expected(model: str) -> dict[str, Any]:
    return sam2.param_shapes(config.get_config(model))


def _shapes(model: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """As `_expected`, of a model whose configuration was changed."""
    if not overrides:
        return _expected(model)
    return sam2.param_shapes(config.get_config(model, **config.sort_overrides(overrides).model))


class _Parser(argparse.ArgumentParser):
    """Reports errors like `main` does: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m checkpoints_convert",
        description="Converts SAM 2 checkpoints, strictly and without loss.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help=".pt, .safetensors, a folder with a model.safetensors, or this project's folder",
    )
    source.add_argument("--download", metavar="MODEL", help="fetch the official file of a model")
    parser.add_argument(
        "--output",
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
