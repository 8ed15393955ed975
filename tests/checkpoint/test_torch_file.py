import argparse
import contextlib
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam2_jax.checkpoint.torch_file import CheckpointError, read_torch_file, write_torch_file

DTYPES = [np.dtype(name) for name in ("f4", "f2", "f8", "i8", "i4", "i2", "i1", "u1", "?")]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def integer(number):
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def numbers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(size=(2, 3), stride=(3, 1), offset=0, numel=6, key="0", storage="FloatStorage"):
    reference = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key)
    reference += text("cpu") + integer(numel) + b"tQ"
    arguments = reference + integer(offset) + numbers(size) + numbers(stride)
    return TENSOR + b"(" + arguments + b"\x89" + ORDERED_DICT + b"tR"


def state_dict(value):
    return b"\x80\x02}" + text("model") + b"}" + text("w") + value + b"ss."


def archive(path, program=None, *, compression=zipfile.ZIP_STORED, **records):
    """Writes a checkpoint with this pickle and one storage of six floats, `records` replaced."""
    contents = {
        "m/data.pkl": state_dict(tensor()) if program is None else program,
        "m/byteorder": b"little",
        "m/data/0": np.arange(6, dtype=np.float32).tobytes(),
    } | records
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in contents.items():
            file.writestr(name, data)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.pt"


def test_reads_a_tensor(path):
    read = read_torch_file(archive(path))
    np.testing.assert_array_equal(read["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert not read["w"].flags.writeable


def test_reads_strided_views_of_one_storage(path):
    both = tensor((3, 2), (1, 3)) + b"s" + text("v") + tensor((2,), (2,), offset=1)
    read = read_torch_file(archive(path, state_dict(both)))
    np.testing.assert_array_equal(read["w"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(read["v"], [1, 3])


def test_reads_flat_state_dicts(path):
    program = b"\x80\x02" + ORDERED_DICT + text("w") + tensor() + b"s}" + text("_metadata")
    read = read_torch_file(archive(path, program + ORDERED_DICT + b"sb."))
    assert list(read) == ["w"]


def test_reads_the_model_beside_an_optimizer(path):
    optimizer = {"lr": 1e-4, "betas": (0.9, 0.999), "steps": [1, None, True], 0: {"step": -1}}
    state = pickle.dumps(optimizer, protocol=2)[2:-1]
    program = b"\x80\x02}" + text("optimizer") + state + b"s" + text("model") + b"}" + text("w")
    assert list(read_torch_file(archive(path, program + tensor() + b"ss."))) == ["w"]


NUMBERS = (np.float64(0.5), np.int64(7), np.bool_(True), np.dtype("float32"))


@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_reads_the_model_beside_numbers_of_numpy(path, module):
    """A score or a step is plain data, under the names of numpy 1 and 2."""
    code = pickle.dumps({"numbers": list(NUMBERS)}, protocol=2)[2:-1]
    state = code.replace(b"numpy._core", module.encode())
    program = b"\x80\x02}" + text("state") + state + b"s" + text("model") + b"}" + text("w")
    assert list(read_torch_file(archive(path, program + tensor() + b"ss."))) == ["w"]


def test_reads_the_model_beside_options_arrays_and_paths(path):
    beside = {
        "args": argparse.Namespace(lr=1e-4, out=pathlib.PosixPath("runs")),
        "mean": np.zeros(3),
        "where": pathlib.PosixPath("a/b"),
    }
    program = pickle.dumps(beside, 2)[:-1] + text("model") + b"}" + text("w") + tensor() + b"ss."
    assert list(read_torch_file(archive(path, program))) == ["w"]


@pytest.mark.parametrize("outer", ["ema", "model"])
def test_reads_nested_state_dicts(path, outer):
    inner = b"}" + text("module") + b"}" + text("w") + tensor() + b"ss"
    program = b"\x80\x02}" + text("epoch") + b"K\x01s" + text(outer) + inner + b"."
    assert list(read_torch_file(archive(path, program))) == ["w"]


@pytest.mark.parametrize(
    "key", ["model_state", "state_dict", "model_state_dict", "module", "net", "ema", "model_ema"]
)
def test_reads_state_dicts_under_the_usual_names(path, key):
    program = state_dict(tensor()).replace(text("model"), text(key))
    assert list(read_torch_file(archive(path, program))) == ["w"]


def test_tells_which_of_two_state_dicts_is_read(path, caplog):
    average = b"}" + text("ema") + b"}" + text("v") + tensor() + b"ss"
    program = b"\x80\x02" + average + text("model") + b"}" + text("w") + tensor() + b"ss."
    assert list(read_torch_file(archive(path, program))) == ["w"]
    assert "model, ema the first is read" in caplog.text


MALICIOUS_PICKLES = {
    "os.system": b"\x80\x02cos\nsystem\n" + text("touch pwned") + b"\x85R.",
    "builtins.eval": b"\x80\x02c__builtin__\neval\n" + text("1") + b"\x85R.",
    "getattr chain": b"\x80\x02cbuiltins\ngetattr\nctorch._utils\n_rebuild_tensor_v2\n\x86R.",
    "other torch function": b"\x80\x02ctorch.hub\nload\n)R.",
    "INST": b"\x80\x02(X\x01\x00\x00\x00aios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n" + text("touch pwned") + b"\x85\x81.",
    "NEWOBJ of a list": b"\x80\x02])\x81.",
    "STACK_GLOBAL": b"\x80\x04" + text("os") + text("system") + b"\x93.",
    "extension registry": b"\x80\x02\x82\x01.",
    "REDUCE of a storage type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "REDUCE of a string": b"\x80\x02" + text("w") + b")R.",
    "OrderedDict with arguments": b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
    "BUILD of a tensor": state_dict(tensor() + b"}b"),
    "BUILD of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "BUILD of a list": b"\x80\x02]}b.",
    "number of numpy for a tensor": state_dict(pickle.dumps(np.float64(0.5), 2)[2:-1]),
    "number of numpy for a model": pickle.dumps({"model": np.float64(0.5)}, 2),
    "a model in itself": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
    "options for a model": pickle.dumps({"model": argparse.Namespace(lr=1)}, 2),
    "number of numpy as a key": pickle.dumps({np.float64(0.5): 1}, 2),
    "array of numpy": pickle.dumps(np.zeros(3), 2),
    "long text for a number": b"\x80\x02F" + b"x" * 100_000 + b"\n.",
    "textual persistent id": b"\x80\x02Pstorage\n.",
    "module in place of a storage": b"\x80\x02(" + text("module") + b"tQ.",
    "huge memo index": b"\x80\x02Nr\xff\xff\xff\xff0.",
    "unknown memo index": b"\x80\x02j\xff\xff\xff\xff.",
    "huge string": b"\x80\x02X\xff\xff\xff\xff.",
    "huge bytes": b"\x80\x02\x8e" + b"\xff" * 8 + b".",
    "nested tuples as a key": b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
    "nested lists": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
    "empty stack": b"\x80\x02.",
    "only a mark": b"\x80\x02(.",
    "no stop": b"\x80\x02}",
    "no bytes": b"",
    "protocol 5": b"\x80\x05}.",
    "APPEND to a dict": b"\x80\x02}Na.",
    "SETITEM of a list": b"\x80\x02]NNs.",
    "odd SETITEMS": b"\x80\x02}(Nu.",
    "text that is not UTF-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "a number for a model": b"\x80\x02}" + text("model") + b"K\x01s.",
    "a number for a tensor": state_dict(b"K\x01"),
    "no dictionary": b"\x80\x02].",
    "past the end": state_dict(tensor((2, 4), (4, 1))),
    "offset past the end": state_dict(tensor(offset=1)),
    "stride past the end": state_dict(tensor(stride=(4, 1))),
    "negative offset": state_dict(tensor(offset=-1)),
    "negative stride": state_dict(tensor(stride=(-3, 1))),
    "negative size": state_dict(tensor(size=(-2, 3))),
    "huge size": state_dict(tensor(size=(1 << 62, 1 << 62))),
    "huge empty size": state_dict(tensor(size=(0, 1 << 40, 1 << 40), stride=(1, 1, 1))),
    "huge expanded size": state_dict(tensor(size=(1 << 30,), stride=(0,))),
    "rank mismatch": state_dict(tensor(size=(6,))),
    "huge rank": state_dict(tensor(size=(1,) * 100, stride=(1,) * 100)),
    "huge storage": state_dict(tensor(numel=1 << 60)),
    "negative storage": state_dict(tensor(numel=-6)),
    "short storage": state_dict(tensor(numel=5)),
    "wider type": state_dict(tensor(storage="DoubleStorage")),
    "unknown storage type": state_dict(tensor(storage="QInt8Storage")),
    "missing storage": state_dict(tensor(key="7")),
    "storage key with a path": state_dict(tensor(key="../data.pkl")),
    "float size": state_dict(tensor().replace(numbers((2, 3)), b"(G" + b"\0" * 8 + b"K\x03t")),
}


@pytest.mark.parametrize("program", MALICIOUS_PICKLES.values(), ids=MALICIOUS_PICKLES)
def test_refuses_pickles_and_runs_nothing(path, program, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(CheckpointError) as error:
        read_torch_file(archive(path, program))
    assert len(str(error.value)) < 600
    assert [entry.name for entry in path.parent.iterdir()] == ["m.pt"]


def test_names_the_refused_global(path):
    with pytest.raises(CheckpointError, match=r"os\.system"):
        read_torch_file(archive(path, MALICIOUS_PICKLES["os.system"]))


@pytest.mark.parametrize(
    "name",
    ["m/../../etc/passwd", "/m/x", "../m/x", "m//x", "m/./x", "m\\..\\x", "C:/x", "x", "n/x"],
)
def test_refuses_unsafe_entry_names(path, name):
    with pytest.raises(CheckpointError):
        read_torch_file(archive(path, **{name: b"x"}))


def test_refuses_compressed_entries(path):
    bomb = {"m/data/1": b"\0" * 10_000_000}
    with pytest.raises(CheckpointError, match="more bytes than it has"):
        read_torch_file(archive(path, compression=zipfile.ZIP_DEFLATED, **bomb))
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch_file(archive(path, state_dict(tensor()), compression=zipfile.ZIP_DEFLATED))


def test_refuses_overlapping_entries(path):
    archive(path, **{"m/data/1": bytes(1000)})
    whole = path.read_bytes()
    # A second entry in the directory that points at the same bytes.
    start = whole.rindex(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    entry = whole[start:end].replace(b"m/data/1", b"m/data/2")
    fields = list(struct.unpack("<4s4H2LH", whole[end : end + 22]))
    fields[3:6] = fields[3] + 1, fields[4] + 1, fields[5] + len(entry)
    path.write_bytes(whole[:end] + entry + struct.pack("<4s4H2LH", *fields))
    with pytest.raises(CheckpointError, match="more bytes than it has"):
        read_torch_file(path)


def test_refuses_duplicate_entries(path):
    archive(path)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("m/data/0", bytes(24))
    with pytest.raises(CheckpointError, match="twice"):
        read_torch_file(path)


def test_refuses_big_endian(path):
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch_file(archive(path, **{"m/byteorder": b"big"}))


def test_refuses_huge_pickles(path):
    with pytest.raises(CheckpointError, match="larger than"):
        read_torch_file(archive(path, b"\x80\x02" + b"N" * (17 << 20)))


def test_refuses_damaged_values(path):
    whole = archive(path).read_bytes()
    values = np.arange(6, dtype=np.float32).tobytes()
    path.write_bytes(whole.replace(values, values[::-1]))
    with pytest.raises(CheckpointError, match="checksum"):
        read_torch_file(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_refuses_truncated_files(path, share):
    whole = archive(path).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError):
        read_torch_file(path)


def test_refuses_other_formats(path):
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6"):
        read_torch_file(path)
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(CheckpointError):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/weights.txt", "1 2 3")
    with pytest.raises(CheckpointError, match=r"data\.pkl"):
        read_torch_file(path)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        read_torch_file(path)


@st.composite
def arrays(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = int(np.prod(shape))
    if dtype.kind == "b":
        bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return np.array(bits, bool).reshape(shape)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    array = np.frombuffer(data, dtype).reshape(shape)
    return array.T if draw(st.booleans()) else array


NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
CHANGES = st.lists(
    st.tuples(st.integers(0), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
)
COMMON = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@settings(COMMON, max_examples=60)
@given(st.dictionaries(NAMES, arrays(), max_size=5))
def test_round_trip(path, tensors):
    write_torch_file(path, tensors)
    read = read_torch_file(path)
    assert list(read) == list(tensors)
    for name, array in tensors.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


@settings(COMMON, max_examples=300)
@given(CHANGES)
def test_damage_is_an_error_or_harmless(path, changes):
    write_torch_file(path, {"a": np.arange(6.0), "b": np.ones((2, 2), np.float32)})
    damaged = bytearray(path.read_bytes())
    # Every other change hits the directory at the end of the file.
    for index, (where, data) in enumerate(changes):
        start = where % len(damaged) if index % 2 else len(damaged) - 1 - where % 700
        damaged[start : start + len(data)] = data
    path.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        read_torch_file(path)


@settings(COMMON, max_examples=300)
@given(CHANGES)
def test_damaged_pickles_are_an_error_or_harmless(path, changes):
    # With a right checksum, so that the interpreter sees the damage.
    program = bytearray(state_dict(tensor()))
    for where, data in changes:
        start = where % len(program)
        program[start : start + len(data)] = data
    archive(path, bytes(program))
    with contextlib.suppress(CheckpointError):
        read_torch_file(path)


def test_written_files_are_deterministic_and_aligned(path):
    tensors = {"a": np.float32(3), "b": np.arange(5, dtype=">i8"), "c": np.ones((3, 4), "f2").T}
    write_torch_file(path, tensors)
    first = path.read_bytes()
    write_torch_file(path, tensors)
    assert path.read_bytes() == first
    for value in (tensors["a"], tensors["b"].astype("<i8")):
        assert first.index(value.tobytes()) % 64 == 0
    np.testing.assert_array_equal(read_torch_file(path)["b"], np.arange(5))


def test_failed_write_keeps_the_old_file(path):
    write_torch_file(path, {"a": np.zeros(1)})
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="complex64"):
        write_torch_file(path, {"a": np.zeros(1, np.complex64)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
