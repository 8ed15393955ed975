"""The phases of the device benchmark: each yields rows as it measures them, and runs in a process of its own.

A row is a dict. `case` says what was run; `ms` how long it took, the median of several runs, of one frame or
image where a run has several; `rate` and `unit` say it the other way round. All else are remarks.
"""

import dataclasses
import functools
import importlib.util
import itertools
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam2_jax.bench import pytorch as torch_side
from sam2_jax.bench.workload import (
    HEIGHT,
    NOW,
    WIDTH,
    full_bank,
    random_images,
    random_model,
)
from sam2_jax.build import Model
from sam2_jax.config import RELEASED, ModelConfig, get_config, resolve_model_name
from sam2_jax.ops.attention import attend_parts, merge
from sam2_jax.parallel import hlo
from sam2_jax.predict.video import SAM2VideoPredictor
from sam2_jax.structs import Frame
from sam2_jax.track import encode as encode_images
from sam2_jax.track import propagate as track_frames

Row = dict[str, Any]
_RUNS, _SECONDS = 30, 3.0  # a measurement ends with the first of the two
_FRAMES = 8  # of one program
_VIDEO = 64  # frames
# Executions of attention that are for one platform.
_KERNELS = {"cpu": ("cpu",), "gpu": ("cudnn", "tokamax"), "tpu": ("tpu",)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      models: names; of the first, every number of objects, of the others the first number only. None is
        sam2.1_hiera_tiny and sam2.1_hiera_large, and on a CPU sam2_nano.
      objects: how many are tracked at a time.
      image_size: side of the input; None is the model's own.
      dtype: compute type; None is float32 on a CPU, bfloat16 elsewhere.
    """

    models: Sequence[str] | None = None
    objects: Sequence[int] = (1, 8)
    image_size: int | None = None
    dtype: str | None = None

    @property
    def compute_type(self) -> str:
        """`dtype`, chosen."""
        return self.dtype or ("float32" if _is_cpu() else "bfloat16")

    def configs(self) -> Iterator[tuple[str, ModelConfig]]:
        """Names and configurations of the models."""
        on_chips = ("sam2.1_hiera_tiny", "sam2.1_hiera_large")
        size = {} if self.image_size is None else {"image_size": self.image_size}
        for name in self.models or (("sam2_nano",) if _is_cpu() else on_chips):
            yield resolve_model_name(name), get_config(name, dtype=self.compute_type, **size)

    def build_models(self) -> Iterator[Model]:
        """The models, one after the other."""
        for name, config in self.configs():
            yield random_model(name, config.image_size, config.dtype)

    def build_cases(self) -> Iterator[tuple[Model, int]]:
        """The models, and how many objects they track."""
        for i, model in enumerate(self.build_models()):
            for num_objects in self.objects if i == 0 else self.objects[:1]:
                yield model, num_objects


def machine(settings: Settings) -> Iterator[Row]:
    """What the figures depend on."""
    device, backend = jax.devices()[0], jax.extend.backend.get_backend()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    packages = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "sam2")
    yield {
        "case": f"{device.device_kind} ({' '.join(backend.platform_version.split())})",
        "CPU": f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores used",
        "compute type": settings.compute_type,
        "Python": platform.python_version(),
        "packages": ", ".join(filter(None, map(torch_side.version, packages))),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", ""),
    }


def ceilings(settings: Settings) -> Iterator[Row]:
    """What this very chip can do: copy, and multiply."""
    side = 1024 if _is_cpu() else 8192
    x = jnp.ones((16 * side, side), jnp.float32)  # 64 MiB; 512 elsewhere
    seconds = _median(_jitted(lambda x: x + 1, x))
    yield _row("copy", seconds, 2 * x.nbytes / seconds / 1e9, "GB/s", MiB=x.nbytes // 2**20)
    x = jnp.ones((side, side), settings.compute_type)
    seconds = _median(_jitted(lambda x: x @ x, x))
    case = f"product of {side} x {side}, {settings.compute_type}"
    yield _row(case, seconds, 2 * side**3 / seconds / 1e12, "TFLOP/s")


def attention(settings: Settings) -> Iterator[Row]:
    """One layer's attention to full memories, alone, by every execution that this platform has."""
    here = ["reference", "xla", *_KERNELS.get(jax.default_backend(), ())]
    if importlib.util.find_spec("tokamax") is None:
        here = [name for name in here if name != "tokamax"]
    _, config = next(settings.configs())
    cells, c, m = config.grid**2, config.hidden_dim, config.memory_dim
    for num_objects in settings.objects:
        shapes = [(num_objects, cells, c)]
        shapes += [(num_objects, config.num_maskmem, cells, width) for width in (c, m)]
        keys = jax.random.split(jax.random.key(0), 3)
        parts = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
        parts = [x.astype(config.dtype) for x in parts]
        used = jnp.ones((num_objects, config.num_maskmem), bool)

        def attend(q, k, v, implementation, used=used):
            return merge(attend_parts(q, k, v, used, implementation=implementation))

        with jax.default_matmul_precision("highest"):
            exact = jax.jit(attend, static_argnums=3)(
                *(x.astype(jnp.float32) for x in parts), "reference"
            )
        flops = 2 * num_objects * config.num_maskmem * cells**2 * (c + m)
        for name in here:
            case = f"{cells} x {config.num_maskmem * cells}, {_objects(num_objects)}, {name}"
            call = functools.partial(jax.jit(attend, static_argnums=3), *parts, name)
            try:
                error = jnp.abs(call() - exact).max() / jnp.abs(exact).max()
                seconds = _median(call)
            except Exception as failure:  # another execution may work all the same
                yield {
                    "case": case,
                    "failed": f"{type(failure).__name__}: {failure}".split("\n")[0],
                }
            else:
                rate = flops / seconds / 1e12
                yield _row(case, seconds, rate, "TFLOP/s", **{"relative error": _short(error)})


def encode(settings: Settings) -> Iterator[Row]:
    """Images to features, one alone and eight in a batch."""
    for model in settings.build_models():
        for batch in (1, _FRAMES):
            size = model.config.image_size
            images = jax.device_put(random_images(batch, size, size, 3))
            program = jax.jit(functools.partial(encode_images, model.module))
            compiled, facts = _compile(program, "kernels an image", batch, model.params, images)
            seconds = _median(lambda c=compiled, m=model, x=images: c(m.params, x)) / batch
            case = f"{model.name}, {size} px, batch {batch}"
            yield _row(case, seconds, 1 / seconds, "images/s", **facts)


def propagate(settings: Settings) -> Iterator[Row]:
    """Eight frames in one program, all memories full; everything stays on the device."""
    for model, num_objects in settings.build_cases():
        call, facts = _tracker(model, num_objects)
        seconds = _median(call) / _FRAMES
        yield _row(_case(model, num_objects), seconds, 1 / seconds, "frames/s", **facts)


def video(settings: Settings) -> Iterator[Row]:
    """End to end: 720p frames in the host's memory to masks in the host's memory, as users track them."""
    num_frames = 2 * _FRAMES if _is_cpu() else _VIDEO
    frames = random_images(num_frames, HEIGHT, WIDTH, 3)
    for model, num_objects in settings.build_cases():
        for what in ("masks", "logits"):
            predictor = SAM2VideoPredictor(model)
            for _ in itertools.islice(
                _track(predictor, frames, num_objects, what), predictor.chunk + 1
            ):
                pass  # compiles
            results = _track(predictor, frames, num_objects, what)
            next(results)  # frame 0 was prompted
            start = time.perf_counter()
            count = sum(1 for _ in results)
            seconds = (time.perf_counter() - start) / count
            case = f"{_case(model, num_objects)}, {what}"
            yield _row(case, seconds, 1 / seconds, "frames/s", frames=count)


def _track(
    predictor: SAM2VideoPredictor, frames: np.ndarray, num_objects: int, what: str
) -> Iterator[Any]:
    """Clicks on so many objects on frame 0, and tracks them to the end."""
    state = predictor.init_state(frames)
    for n in range(num_objects):
        point = np.array([[WIDTH / (n + 2), HEIGHT / 2]])
        predictor.add_new_points_or_box(state, 0, n, point, np.array([1]))
    yield from predictor.propagate_in_video(state, return_logits=what == "logits")


def pytorch(settings: Settings) -> Iterator[Row]:
    """The same frames in PyTorch, ours and theirs in turns."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # both are on one device
    if torch_side.version("torch") is None:
        raise ModuleNotFoundError("torch is not installed; pip install torch transformers")
    if settings.models is None and _is_cpu():  # PyTorch has no nano
        size = settings.image_size or 256
        settings = dataclasses.replace(settings, models=["sam2.1_hiera_tiny"], image_size=size)
    for name, _ in settings.configs():
        if name not in RELEASED:
            raise ValueError(
                f"PyTorch has no {name}; take another model, such as sam2.1_hiera_tiny"
            )
    for model, num_objects in settings.build_cases():
        ours, _ = _tracker(model, num_objects)
        for name, theirs, num_frames in _theirs(model, num_objects):
            seconds = _in_turns((ours, theirs))
            our_seconds, their_seconds = seconds[0] / _FRAMES, seconds[1] / num_frames
            yield _row(
                f"{_case(model, num_objects)}, {name}",
                their_seconds,
                1 / their_seconds,
                "frames/s",
                **{
                    "ms here": _short(1e3 * our_seconds),
                    "times as fast": _short(their_seconds / our_seconds),
                },
            )


def _theirs(model: Model, num_objects: int) -> Iterator[tuple[str, Callable[[], None], int]]:
    """Name, call and frames a call of what can be compared with; compiling is for GPUs."""
    if is_there := torch_side.version("transformers"):
        yield "transformers", torch_side.transformers_step(model.config, num_objects, False), 1
    if _is_cpu():
        return
    if torch_side.version("sam2"):
        with torch_side.original_clip(model.name, model.config, num_objects) as call:
            yield "the original, vos_optimized", call, torch_side.CLIP
    elif is_there:
        step = torch_side.transformers_step(model.config, num_objects, True)
        yield "transformers, compiled", step, 1


def _tracker(model: Model, num_objects: int) -> tuple[Callable[[], Any], Row]:
    """A call that tracks the next `_FRAMES` frames, and the facts of its program."""
    size = model.config.image_size
    images = jax.device_put(random_images(_FRAMES, size, size, 3))
    bank, index = full_bank(model.config, num_objects), NOW + np.arange(_FRAMES, dtype=np.int32)
    program = jax.jit(functools.partial(track_frames, model.module), donate_argnums=1)
    compiled, facts = _compile(
        program, "kernels a frame", _FRAMES, model.params, bank, Frame(images, index)
    )

    def call():
        nonlocal bank, index
        bank, prediction = compiled(model.params, bank, Frame(images, index))
        index = index + _FRAMES
        return bank, prediction

    return call, facts


def _compile(
    function: Any, kernels_a: str, number: int, *args: Any
) -> tuple[jax.stages.Compiled, Row]:
    """Compiles a jitted function for a number of frames or images; says what the program does."""
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    seconds = time.perf_counter() - start
    cost = hlo.cost(compiled.as_text())
    return compiled, {
        kernels_a: round(cost.kernels / number),
        "loops": cost.loops,
        "conditionals": cost.conditionals,
        "temporary MiB": compiled.memory_analysis().temp_size_in_bytes // 2**20,
        "seconds to compile": _short(seconds),
    }


def _jitted(function: Callable, *args: Any) -> Callable[[], Any]:
    return functools.partial(jax.jit(function), *args)


def _median(call: Callable[[], Any]) -> float:
    """Median seconds of a call."""
    return _in_turns((call,))[0]


def _in_turns(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Median seconds of each call, taken in turns, the order flipped every time."""
    samples: list[list[float]] = [[] for _ in calls]
    for call in calls:  # compiles, and warms up
        jax.block_until_ready(call())
    end = time.perf_counter() + _SECONDS * len(calls)
    for i in range(_RUNS):
        for n in range(len(calls))[:: 1 if i % 2 == 0 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(calls[n]())
            samples[n].append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return [statistics.median(times) for times in samples]


def _row(case: str, seconds: float, rate: float, unit: str, **remarks: Any) -> Row:
    return {
        "case": case,
        "ms": _short(1e3 * seconds),
        "rate": _short(rate),
        "unit": unit,
        **remarks,
    }


def _case(model: Model, num_objects: int) -> str:
    return f"{model.name}, {model.config.image_size} px, {_objects(num_objects)}"


def _objects(number: int) -> str:
    return "1 object" if number == 1 else f"{number} objects"


def _short(number: float) -> float:
    """Three digits are all that means something."""
    return float(f"{number:.3g}")


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"
