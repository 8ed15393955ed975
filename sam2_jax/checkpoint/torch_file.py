"""Reads and writes PyTorch `.pt` checkpoints without PyTorch, and without running what is in them.

A `.pt` file is an uncompressed zip archive: `<stem>/data.pkl` is a pickle that describes tensors,
`<stem>/data/<key>` are the raw bytes of their storages. A pickle is a program; this reader
interprets the few opcodes that checkpoints are made of and calls nothing that the file names.
"""

import dataclasses
import logging
import math
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from sam2_jax.files import PartialFile

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_STORAGE_NAMES = {dtype: name for name, dtype in _STORAGES.items()}
# Where state dicts lie beside other things: SAM 2, Hiera, and what is usual elsewhere.
_STATE_DICTS = (
    "model",
    "model_state",
    "state_dict",
    "model_state_dict",
    "module",
    "net",
    "weights",
    "ema",
    "model_ema",
    "state_dict_ema",
)

# The pickle of the largest model with its optimizer state takes 1 MB.
_MAX_PICKLE_BYTES = 16 << 20
_MAX_DIMENSIONS = 16
_MAX_NESTING = 3  # of state dicts: {"ema": {"module": {...}}}
_MAX_ELEMENTS = 1 << 40
_CHUNK = 1 << 20
_ALIGNMENT = 64

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """The file is not a checkpoint that can be read safely."""


def read_torch_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint written by `torch.save`.

    Args:
      path: a `.pt` file whose top level is a state dict, or a dict with one under a usual name, such as
        "model", "state_dict", "model_state_dict" or "ema"; of several the first is read, with a warning. What
        lies beside it (optimizer state, epoch, ...) is checked and dropped.

    Returns:
      {name: read-only array in the stored type}, in file order. The arrays are views of the
      memory-mapped file: copy what must outlive a change of the file.

    Raises:
      FileNotFoundError: when there is no such file.
      CheckpointError: when the file is damaged, is not a state dict, or holds anything but
        tensors and plain containers.
    """
    try:
        with open(path, "rb") as file:
            archive = _Archive(file)
            return _state_dict(_Interpreter(archive.storage).run(archive.read("data.pkl")))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write_torch_file(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes {"model": tensors} so that `torch.load(path, weights_only=True)` reads it.

    The bytes depend on the tensors and their order only. The file appears whole or not at all.

    Raises:
      CheckpointError: for a type that PyTorch does not have.
    """
    with (
        PartialFile(path).written() as partial,
        open(partial, "xb") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        _write_record(file, archive, "data.pkl", _pickle_state_dict(tensors))
        _write_record(file, archive, ".format_version", b"1")
        _write_record(file, archive, ".storage_alignment", str(_ALIGNMENT).encode())
        _write_record(file, archive, "byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            array = np.asarray(tensor)
            little = array.astype(_torch_dtype(array.dtype), order="C", copy=False)
            _write_record(file, archive, f"data/{key}", little.reshape(-1).view(np.uint8).data)
        _write_record(file, archive, "version", b"3\n")


# --- The zip archive ---


@dataclasses.dataclass(frozen=True)
class _Record:
    """One file of the archive: where its bytes are."""

    name: str
    start: int
    size: int
    crc: int


class _Archive:
    """The records of a checkpoint, every one inside the file, uncompressed and under one stem."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._records = _read_directory(file)
        self._storages: dict[tuple[str, np.dtype], np.ndarray] = {}
        self._data = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
        if "byteorder" in self._records and self.read("byteorder") != b"little":
            raise CheckpointError("it holds big-endian tensors; only little-endian is read.")

    def read(self, name: str) -> bytes:
        """Returns the bytes of a small record."""
        record = self._records[name]
        if record.size > _MAX_PICKLE_BYTES:
            raise CheckpointError(f"{name} is larger than {_MAX_PICKLE_BYTES} bytes.")
        self._check(record)
        return self._data[record.start : record.start + record.size].tobytes()

    def storage(self, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
        """Returns the `numel` elements of a storage, memory-mapped."""
        record = self._records.get(f"data/{key}")
        if record is None:
            raise CheckpointError(f"the storage {key[:40]!r} is missing from the archive.")
        if record.size != numel * dtype.itemsize:
            raise CheckpointError(
                f"the storage {key!r} has {record.size} bytes, not {numel} elements of {dtype}."
            )
        if (key, dtype) not in self._storages:
            self._check(record)
            values = self._data[record.start : record.start + record.size].view(dtype)
            self._storages[key, dtype] = values
        return self._storages[key, dtype]

    def _check(self, record: _Record) -> None:
        # Through the file, not the memory map: mapped pages count as memory in use.
        self._file.seek(record.start)
        crc, left = 0, record.size
        while left and (chunk := self._file.read(min(left, _CHUNK))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        if left or crc != record.crc:
            raise CheckpointError(f"{record.name} is damaged: its checksum does not match.")


def _read_directory(file: BinaryIO) -> dict[str, _Record]:
    """Returns {name without the stem: record}."""
    if file.read(4) != b"PK\x03\x04":
        raise CheckpointError(
            "this is not a PyTorch zip checkpoint. A file in the format before PyTorch 1.6 can be "
            "rewritten with torch.save(torch.load(path, weights_only=True), path)."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
        raise CheckpointError(f"the file is truncated or damaged ({error}).") from error

    length = file.seek(0, os.SEEK_END)
    if sum(entry.file_size for entry in entries) > length:
        raise CheckpointError("the file declares more bytes than it has.")
    records = {}
    for entry in entries:
        record = _locate(file, entry, length)
        if record.name in records:
            raise CheckpointError(f"the file holds {entry.filename[:80]!r} twice.")
        records[record.name] = record
    stems = {entry.filename.partition("/")[0] for entry in entries}
    if len(stems) != 1 or "data.pkl" not in records:
        raise CheckpointError("this is a zip file, but not a PyTorch checkpoint with a data.pkl.")
    return records


def _locate(file: BinaryIO, entry: zipfile.ZipInfo, length: int) -> _Record:
    """Finds the bytes of one entry from its local header."""
    shown = repr(entry.filename[:80])
    name = entry.filename.partition("/")[2]
    if not name or re.search(r"(^|/)\.{0,2}(/|$)|[\\:]", entry.filename):
        raise CheckpointError(f"the entry {shown} has an unsafe name.")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise CheckpointError(f"the entry {shown} is compressed; PyTorch never does that.")
    if entry.flag_bits & 1:
        raise CheckpointError(f"the entry {shown} is encrypted.")
    if not 0 <= entry.header_offset <= length - 30:
        raise CheckpointError(f"the entry {shown} lies outside the file.")
    file.seek(entry.header_offset)
    header = file.read(30)
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + 30 + name_length + extra_length
    if header[:4] != b"PK\x03\x04" or start + entry.file_size > length:
        raise CheckpointError(f"the entry {shown} is truncated or damaged.")
    return _Record(name, start, entry.file_size, entry.CRC)


def _write_record(file: BinaryIO, archive: zipfile.ZipFile, name: str, data: Any) -> None:
    """Adds one uncompressed record whose bytes start at a multiple of 64, as PyTorch's do."""
    info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 0  # the same bytes on every system
    padding = -(file.tell() + 30 + len(info.filename) + 4) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(info, data)


# --- Reading the pickle ---


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name in the pickle, never looked up."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    values: np.ndarray


class _PlainData:
    """A number, array or path, or options, beside the tensors; never looked into."""


_MARK = object()
_NEW = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_PLAIN_DATA = {
    _Global("_codecs", "encode"),
    _Global("argparse", "Namespace"),
    _Global("numpy", "dtype"),
    _Global("numpy", "ndarray"),
    *(
        _Global(f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(_Global("pathlib", name) for name in ("PosixPath", "WindowsPath")),
    _Global("types", "SimpleNamespace"),
}
_GLOBALS = _PLAIN_DATA | {
    _Global("collections", "OrderedDict"),
    _Global("torch", "Size"),
    _Global("torch._utils", "_rebuild_tensor_v2"),
    _Global("torch._utils", "_rebuild_parameter"),
    *(_Global("torch", name) for name in _STORAGES),
}


class _Interpreter:
    """Runs the pickle opcodes that protocol 2 uses for tensors and plain containers.

    Python's own unpickler cannot be held to this from outside: it hashes whatever a dictionary has for a key,
    without a limit to its nesting, sets attributes of the functions that it is given, and makes its memo as
    large as an index says. Here keys are strings and numbers, and only dictionaries are set up.
    """

    def __init__(self, load_storage: Callable[[str, np.dtype, int], np.ndarray]):
        self._load_storage = load_storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """Returns the object on top of the stack at STOP."""
        for opcode, argument in _opcodes(program):
            match opcode:
                case "STOP":
                    break
                case "PROTO":
                    if argument != 2:
                        raise CheckpointError(
                            f"data.pkl uses pickle protocol {argument}; only 2 is read."
                        )
                case "MARK":
                    self._stack.append(_MARK)
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                    self._stack.append(argument)
                case _ if opcode in _NEW:
                    self._stack.append(_NEW[opcode]())
                case "TUPLE":
                    self._stack.append(tuple(self._pop_to_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    self._stack.append(tuple(self._pop() for _ in range(int(opcode[-1])))[::-1])
                case "BINPUT" | "LONG_BINPUT":
                    self._memo[argument] = self._top()
                case "BINGET" | "LONG_BINGET":
                    if argument not in self._memo:
                        raise CheckpointError("data.pkl recalls a value that it never kept.")
                    self._stack.append(self._memo[argument])
                case "APPEND":
                    self._append([self._pop()])
                case "APPENDS":
                    self._append(self._pop_to_mark())
                case "SETITEM":
                    self._set([self._pop(), self._pop()][::-1])
                case "SETITEMS":
                    self._set(self._pop_to_mark())
                case "GLOBAL":
                    self._stack.append(_find_global(*argument.split(" ", 1)))
                case "BINPERSID":
                    self._stack.append(self._storage(self._pop()))
                case "REDUCE" | "NEWOBJ":
                    arguments, function = self._pop(), self._pop()
                    self._stack.append(_call(function, arguments))
                case "BUILD":
                    # Of no use here: the module versions in a state dict's `_metadata`, the bytes of a type.
                    self._pop()
                    if not isinstance(self._top(), dict | _PlainData):
                        raise CheckpointError(f"data.pkl sets the state of a {_kind(self._top())}.")
                case _:
                    raise CheckpointError(f"data.pkl uses the pickle opcode {opcode}, not allowed.")
        return self._pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise CheckpointError("data.pkl takes a value that it never made.")
        return self._stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while self._stack:
            value = self._stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)
        raise CheckpointError("data.pkl takes values that it never made.")

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise CheckpointError("data.pkl appends to something that is not a list.")
        target.extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise CheckpointError("data.pkl sets items of something that is not a dictionary.")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int | float | None):
                raise CheckpointError(f"data.pkl has a dictionary key of type {_kind(key)}.")
            target[key] = value

    def _storage(self, reference: Any) -> _Storage:
        match reference:
            case ("storage", _Global("torch", name), str(key), str(), int(numel)) if (
                name in _STORAGES
            ):
                return _Storage(self._load_storage(key, _STORAGES[name], numel))
        raise CheckpointError("data.pkl refers to something that is not a storage.")


def _opcodes(program: bytes) -> Iterator[tuple[str, Any]]:
    """Names and arguments of the instructions of a pickle."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            yield opcode.name, argument
    except ValueError as error:
        raise CheckpointError(f"data.pkl is truncated or damaged ({str(error)[:100]}).") from error


def _find_global(module: str, name: str) -> _Global:
    found = _Global(module, name)
    if found not in _GLOBALS:
        raise CheckpointError(
            f"it names {module[:60]}.{name[:60]}, which is not a tensor or a plain container. "
            "Save the weights alone: torch.save(model.state_dict(), path)."
        )
    return found


def _call(function: Any, arguments: Any) -> Any:
    """What a call of a global gives; nothing that the file names is run."""
    match function, arguments:
        case _Global("collections", "OrderedDict"), ():
            return {}
        case _Global("torch", "Size"), (tuple(size),):
            return size
        case (
            _Global("torch._utils", "_rebuild_tensor_v2"),
            (_Storage(values), offset, size, stride, _, _, *_),
        ):
            return _view(values, offset, size, stride)
        case _Global("torch._utils", "_rebuild_parameter"), (np.ndarray() as array, _, _):
            return array
        case _Global(), tuple() if function in _PLAIN_DATA:
            return _PlainData()
    raise CheckpointError(f"data.pkl calls a {_kind(function)} in an unknown way.")


def _view(storage: np.ndarray, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """Returns the tensor that starts at `offset` of a storage, every element inside it."""
    for numbers in (size, stride, (offset,)):
        if not isinstance(numbers, tuple) or not all(
            type(number) is int and 0 <= number <= _MAX_ELEMENTS for number in numbers
        ):
            raise CheckpointError("a tensor has an impossible offset, size or stride.")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise CheckpointError(f"a tensor has {len(size)} sizes and {len(stride)} strides.")
    if math.prod(side or 1 for side in size) > _MAX_ELEMENTS:
        raise CheckpointError("a tensor has an impossible size.")
    if 0 in size:
        return np.empty(size, storage.dtype)
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if last >= len(storage):
        raise CheckpointError(
            f"a tensor reads element {last} of a storage that has {len(storage)}."
        )
    if math.prod(size) > len(storage):
        raise CheckpointError("a tensor repeats elements of its storage.")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.ndarray(size, storage.dtype, storage, offset * storage.itemsize, strides)


def _state_dict(top: Any) -> dict[str, np.ndarray]:
    """Returns the state dict that lies under one of the usual names, or is the top level."""
    if not isinstance(top, dict):
        raise CheckpointError(f"it holds a {_kind(top)}, not a state dict.")
    tensors = top
    for _ in range(_MAX_NESTING):
        found = [name for name in _STATE_DICTS if isinstance(tensors.get(name), dict)]
        if not found:
            break
        if len(found) > 1:
            logger.warning("Of the state dicts %s the first is read.", ", ".join(found))
        tensors = tensors[found[0]]
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise CheckpointError(
                f"this is not a state dict: {str(name)[:80]!r} is a {_kind(tensor)}, not a tensor."
            )
    return tensors


def _kind(value: Any) -> str:
    # Never repr: a file can make a small pickle whose repr is endless.
    return type(value).__name__.lstrip("_")


# --- Writing the pickle ---


def _pickle_state_dict(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Pickles {"model": OrderedDict(tensors)} with storage i for tensor i."""
    items = b"".join(
        _pickle_text(name) + _pickle_tensor(str(key), tensor)
        for key, (name, tensor) in enumerate(tensors.items())
    )
    model = _EMPTY_ORDERED_DICT + pickle.MARK + items + pickle.SETITEMS
    top = pickle.EMPTY_DICT + _pickle_text("model") + model + pickle.SETITEM
    return pickle.PROTO + b"\x02" + top + pickle.STOP


def _pickle_tensor(key: str, tensor: np.ndarray) -> bytes:
    size = np.shape(tensor)
    stride = [math.prod(max(side, 1) for side in size[i + 1 :]) for i in range(len(size))]
    storage = _pickle_tuple(
        _pickle_text("storage"),
        _pickle_global("torch", _STORAGE_NAMES[_torch_dtype(tensor.dtype)]),
        _pickle_text(key),
        _pickle_text("cpu"),
        _pickle_int(math.prod(size)),
    )
    arguments = _pickle_tuple(
        storage + pickle.BINPERSID,
        _pickle_int(0),
        _pickle_tuple(*map(_pickle_int, size)),
        _pickle_tuple(*map(_pickle_int, stride)),
        pickle.NEWFALSE,
        _EMPTY_ORDERED_DICT,
    )
    return _pickle_global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _torch_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the little-endian type of a PyTorch storage."""
    dtype = np.dtype(dtype).newbyteorder("<")
    if dtype not in _STORAGE_NAMES:
        raise CheckpointError(f"PyTorch has no tensor of type {dtype}.")
    return dtype


def _pickle_text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _pickle_int(number: int) -> bytes:
    if number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + b"\x09" + number.to_bytes(9, "little", signed=True)


def _pickle_tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _pickle_global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


_EMPTY_ORDERED_DICT = (
    _pickle_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
)
