"""Measures time and memory of this project, beside transformers' SAM 2 in PyTorch on the same CPU.

    python scripts/benchmark.py                                  everything
    python scripts/benchmark.py --cases encode --rounds 9
    python scripts/benchmark.py --device-only --json gpu.json    our side alone, on JAX's device

Cases, in float32 with random weights, on fixed random inputs:

    encode    one image to features, high-resolution projections included
    track     one frame with a full memory: encode, memory attention, decode, encode the memory
    clip      twelve frames from the first click on, as the memory fills
    train     one step on images, a click an object: losses, gradient, clipping, AdamW; at 256 px
    memory    peak memory of SAM2VideoPredictor over clips of two lengths
    objects   one frame with a full memory and several objects: as a batch, and one after the other
    stream    resident memory of SAM2StreamPredictor over frames without end
    compile   lower and compile, with an empty and with a filled compilation cache

Every measurement has a process of its own. Times of the two sides are taken in one process, in
turns, and the order is flipped every round; each sample follows a call that is not measured. Needs
Linux.
"""

# pyright: reportMissingImports=false
# PyTorch and what builds on it are not installed where types are checked.

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sam2_jax.bench.pytorch import (
    check_attention,
    full_session,
    new_session,
    transformers_config,
)
from sam2_jax.bench.workload import NOW, full_bank
from sam2_jax.build import Model
from sam2_jax.config import POSTPROCESSING_VIDEO, ModelConfig, get_config
from sam2_jax.data.videos import Frames
from sam2_jax.experiment import Experiment, Interaction, LossWeights, Optimizer
from sam2_jax.model import memory_bank
from sam2_jax.model.sam2 import Sam2, init_params, param_shapes
from sam2_jax.parallel.mesh import make_mesh
from sam2_jax.predict.image import encode_images
from sam2_jax.predict.stream import SAM2StreamPredictor
from sam2_jax.predict.video import SAM2VideoPredictor
from sam2_jax.structs import Frame, Prompt
from sam2_jax.track import begin, encode, propagate, propagate_features
from sam2_jax.train.recipe import make_recipe
from sam2_jax.train.state import init_state, put_batch, put_hyperparameters
from sam2_jax.train.step import compiled_step

CASES = ("encode", "track", "clip", "train", "objects", "memory", "stream", "compile")
TINY, BASE, LARGE = (f"sam2.1_hiera_{size}" for size in ("tiny", "base_plus", "large"))
CLIP_FRAMES = 12
BATCH = 4  # images of a training step
RATE, DECAY, CLIP = 1e-4, 0.1, 0.1  # of its optimizer

_propagate = jax.jit(propagate, static_argnums=0)


class Task(NamedTuple):
    """One call to time: tracks `objects` objects, or learns from them, or encodes if there are none."""

    model: str
    size: int
    objects: int
    trains: bool = False
    frames: int = (
        0  # of a clip that is tracked from its first frame on; 0 is one frame with full memories
    )

    @property
    def title(self) -> str:
        """As the table shows it."""
        what = f"track {self.objects}" if self.objects else "encode"
        what = f"{what} through {self.frames} frames" if self.frames else what
        what = f"train on {BATCH} images with {self.objects} objects" if self.trains else what
        return f"{what}, {self.model}, {self.size} px"


def random_params(config: ModelConfig) -> dict:
    """Returns initial weights on the device."""
    return jax.device_put(init_params(config, jax.random.key(2)))


def ours(task: Task) -> Callable[[], Any]:
    """Returns the call to time on this project's side."""
    if task.trains:
        return our_training(task)
    config = get_config(task.model, image_size=task.size)
    params, module = random_params(config), Sam2(config)
    image = np.random.default_rng(0).standard_normal((1, task.size, task.size, 3), np.float32)
    if not task.objects:
        image = jax.device_put(image)
        return lambda: jax.block_until_ready(encode_images(module, params, image))
    if task.frames:
        return our_clip(task, module, params, image)
    frames = jax.device_put(Frame(image, np.array([NOW], np.int32)))
    bank = full_bank(config, task.objects)
    return lambda: jax.block_until_ready(_propagate(module, params, bank, frames))


def our_clip(task: Task, module: Sam2, params: dict, image: np.ndarray) -> Callable[[], Any]:
    """Returns the clip of equal frames on this project's side, a click for every object on the first."""
    clicks = np.array([task.size / (n + 2) for n in range(task.objects)], np.float32)
    points = np.tile(clicks[:, None, None], (1, 2, 2))
    prompt = Prompt(points, np.tile(np.array([1, -1], np.int32), (task.objects, 1)))
    empty = memory_bank.empty(module.config, task.objects, num_frames=task.frames)
    begin_clip = jax.jit(begin, static_argnums=0)

    def call():
        bank, _ = begin_clip(module, params, empty, Frame(image[0], np.int32(0)), prompt)
        for i in range(1, task.frames):
            frames = Frame(image, np.array([i], np.int32))
            bank, prediction = _propagate(module, params, bank, frames)
        return jax.block_until_ready((bank, prediction))

    return call


def our_training(task: Task) -> Callable[[], Any]:
    """Returns the training step on this project's side."""
    optimizer = Optimizer(
        learning_rate=RATE,
        encoder_learning_rate=RATE,
        layer_decay=1.0,
        schedule="constant",
        weight_decay=DECAY,
        gradient_clip=CLIP,
    )
    experiment = Experiment(
        model=task.model,
        model_overrides={"image_size": task.size},
        drop_path_rate=0.0,
        interaction=Interaction(box_probability=0.0, num_corrections=0),
        optimizer=optimizer,
        remat="none",
    )
    recipe, mesh = make_recipe(experiment), make_mesh(experiment.mesh)
    images, masks = training_batch(task)
    batch = {"images": images[:, None], "masks": masks[:, None]}
    batch["is_object"] = np.ones(masks.shape[:2], bool)
    batch = put_batch(mesh, batch)
    step, state = compiled_step(recipe, mesh), init_state(recipe, mesh)
    values = put_hyperparameters(recipe, mesh)

    def call():
        nonlocal state
        state, metrics = step(state, batch, values)
        return jax.block_until_ready((state, metrics))

    return call


def training_batch(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images (B, S, S, 3) and bool masks (B, N, S, S) of one rectangle each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, task.size, task.size, 3), np.uint8)
    masks = np.zeros((BATCH, task.objects, task.size, task.size), bool)
    for mask in masks.reshape(-1, task.size, task.size):
        y, x = rng.integers(0, task.size // 2, 2)
        mask[y : y + task.size // 4, x : x + task.size // 3] = True
    return images, masks


def looped(task: Task) -> Callable[[], Any]:
    """Returns the call to time when objects are taken one by one: they share the image's features only."""
    config = get_config(task.model, image_size=task.size)
    params, module = random_params(config), Sam2(config)
    rng = np.random.default_rng(0)
    image = jax.device_put(rng.standard_normal((1, task.size, task.size, 3), np.float32))
    index = jax.device_put(np.array([NOW], np.int32))
    bank = full_bank(config, 1)
    encode_one = jax.jit(encode, static_argnums=0)
    propagate_one = jax.jit(propagate_features, static_argnums=0)

    def call():
        features = encode_one(module, params, image)
        each = [propagate_one(module, params, bank, features, index) for _ in range(task.objects)]
        return jax.block_until_ready(each)

    return call


# torch is imported only here: it may be missing, and it would count as our memory.
def theirs(task: Task) -> Callable[[], Any]:
    """Returns the call to time on transformers' side."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    our_config = get_config(task.model, image_size=task.size)
    config = transformers_config(our_config)
    if task.trains:
        return their_training(task, config)
    pixels = torch.randn(3, task.size, task.size)
    if task.objects:
        model = transformers.Sam2VideoModel(config).eval()
        check_attention(model)
        if task.frames:

            def track_clip():
                session = new_session(pixels, task.frames, our_config, task.objects)
                for i in range(task.frames):
                    model(inference_session=session, frame_idx=i)

            return torch.inference_mode()(track_clip)
        session = full_session(model, pixels, our_config, task.objects)

        def call():
            session.cache.clear_all()  # holds the features of the call before
            return model(inference_session=session, frame_idx=NOW)

        return call
    prompts = transformers.Sam2PromptEncoderConfig(image_size=task.size)
    model = transformers.Sam2Model(
        transformers.Sam2Config(vision_config=config.vision_config, prompt_encoder_config=prompts)
    ).eval()
    check_attention(model)
    encode = torch.inference_mode()(model.get_image_embeddings)
    return lambda: encode(pixels[None])


def their_training(task: Task, config: Any) -> Callable[[], Any]:
    """Returns the training step on transformers' side, with the same losses and optimizer."""
    import torch
    import transformers
    from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

    prompts = transformers.Sam2PromptEncoderConfig(image_size=task.size)
    model = transformers.Sam2Model(
        transformers.Sam2Config(vision_config=config.vision_config, prompt_encoder_config=prompts)
    ).train()
    check_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    images, masks = training_batch(task)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    truth = torch.from_numpy(masks.astype(np.float32))[:, :, None]
    weights, rng = LossWeights(), np.random.default_rng(1)

    def clicks():
        places = [np.argwhere(mask) for mask in masks.reshape(-1, task.size, task.size)]
        points = [place[rng.integers(len(place))][::-1] for place in places]
        return torch.from_numpy(np.float32(points)).reshape(BATCH, task.objects, 1, 2)

    def call():
        points = clicks()
        out = model(
            pixel_values=pixels,
            input_points=points,
            input_labels=torch.ones(points.shape[:3], dtype=torch.int32),
            multimask_output=True,
        )
        logits = interpolate(out.pred_masks.flatten(0, 1), truth.shape[-2:], mode="bilinear")
        logits = logits.unflatten(0, truth.shape[:2])
        target = truth.expand_as(logits)
        p = logits.sigmoid()
        miss = p + target - 2 * p * target
        focal = binary_cross_entropy_with_logits(logits, target, reduction="none") * miss**2
        focal = ((0.75 - 0.5 * target) * focal).mean((-2, -1))
        dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / ((p + target).sum((-2, -1)) + 1)
        both, either = (logits > 0) & (target > 0), (logits > 0) | (target > 0)
        iou = both.sum((-2, -1)) / either.sum((-2, -1)).clamp(min=1)
        mask_loss = (weights.mask * focal + weights.dice * dice).min(-1).values
        iou_loss = (out.iou_scores - iou).abs().mean(-1)
        scores = out.object_score_logits.reshape(mask_loss.shape)
        presence = binary_cross_entropy_with_logits(
            scores, torch.ones_like(scores), reduction="none"
        )
        (mask_loss + weights.iou * iou_loss + weights.presence * presence).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return call


SIDES = {"ours": ours, "theirs": theirs, "loop": looped}


def time_in_turns(task: Task, sides: list[str], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each side, one number a round."""
    calls = {side: SIDES[side](task) for side in sides}
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for call in calls.values():  # compiles
        call()
    for i in range(rounds):
        for side in sides if i % 2 == 0 else sides[::-1]:
            calls[side]()
            start = time.perf_counter()
            calls[side]()
            samples[side].append(time.perf_counter() - start)
    return samples


def peak_mib(on_device: bool = True) -> float:
    """Returns the peak memory: of the accelerator if there is one, else of this process."""
    stats = jax.local_devices()[0].memory_stats() if on_device else None
    if stats:
        return stats["peak_bytes_in_use"] / 2**20
    # Not getrusage: its peak survives exec, so that it begins with the parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak_of_task(task: Task, side: str) -> float:
    """Returns MiB after building one side and calling it twice."""
    call = SIDES[side](task)
    call()
    call()
    return peak_mib(on_device=side == "ours")


class Noise(Frames):
    """A clip of random frames, none of which is kept."""

    def __init__(self, size: int, count: int):
        self.height = self.width = size
        self.count = count

    def __len__(self) -> int:
        return self.count

    def _read(self, index: int) -> np.ndarray:
        shape = (self.height, self.width, 3)
        return np.random.default_rng(index).integers(0, 256, shape, np.uint8)


def peak_of_clip(size: int, num_frames: int) -> float:
    """Returns MiB after tracking one clicked object through a clip with tiny."""
    config = get_config(TINY, image_size=size, **POSTPROCESSING_VIDEO)
    predictor = SAM2VideoPredictor(Model(TINY, config, random_params(config)))
    state = predictor.init_state(Noise(size, num_frames), keep_frames=16)
    predictor.add_new_points_or_box(state, 0, 1, np.full((1, 2), size / 2), np.array([1]))
    for _ in predictor.propagate_in_video(state):
        pass
    return peak_mib()


def resident_over_stream(size: int, num_frames: int) -> dict[int, float]:
    """Returns {frame: resident MiB} of streaming two objects with tiny, at twelve points."""
    config = get_config(TINY, image_size=size, **POSTPROCESSING_VIDEO)
    stream = SAM2StreamPredictor(Model(TINY, config, random_params(config)))
    frames = Noise(size, 50)
    stream.add_frame(frames[0])
    for obj_id in (1, 2):
        stream.add_new_points_or_box(obj_id, np.full((1, 2), size / (1 + obj_id)), np.array([1]))
    resident = {}
    for t in range(1, num_frames + 1):
        stream.track(frames[t % 50])
        if t % max(num_frames // 12, 1) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident[t] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resident


def compile_seconds(model: str, size: int) -> dict[str, list[float]]:
    """Returns {program: [seconds to lower, seconds to compile]}; nothing is run."""
    config = get_config(model, image_size=size)
    module, params = Sam2(config), param_shapes(config)
    shape = jax.ShapeDtypeStruct
    frames = Frame(shape((1, size, size, 3), np.uint8), shape((1,), np.int32))
    bank = jax.eval_shape(lambda: memory_bank.empty(config, 1))
    seconds = {}
    for name, function, arguments in (
        ("encode", encode_images, (params, shape((1, size, size, 3), np.float32))),
        ("propagate", _propagate, (params, bank, frames)),
    ):
        start = time.perf_counter()
        lowered = function.lower(module, *arguments)
        middle = time.perf_counter()
        lowered.compile()
        seconds[name] = [middle - start, time.perf_counter() - middle]
    return seconds


def in_new_process(function: Callable, *arguments: Any) -> Any:
    """Returns `function(*arguments)` as a fresh interpreter computes it."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def device_name() -> str:
    """Returns what JAX runs on."""
    device = jax.local_devices()[0]
    return f"{device.platform} ({device.device_kind})"


def machine() -> dict[str, str]:
    """Describes what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    packages = ("jax", "jaxlib", "flax", "torch", "transformers")
    versions = [
        f"{p} {importlib.metadata.version(p)}" for p in packages if importlib.util.find_spec(p)
    ]
    allocator = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    }
    return {
        "date": datetime.date.today().isoformat(),
        "CPU": cpuinfo.partition("model name")[2].partition(":")[2].partition("\n")[0].strip(),
        "cores used": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "JAX device": in_new_process(device_name),
        "Python": platform.python_version(),
        "packages": ", ".join(versions),
        "allocator": json.dumps(allocator) if allocator else " ".join(platform.libc_ver()),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "none"),
        "load average at start": ", ".join(f"{x:.1f}" for x in os.getloadavg()),
    }


def measure_times(tasks: list[Task], sides: list[str], rounds: int) -> list[dict[str, Any]]:
    """Measures seconds and peak memory of every task; prints a table."""
    print(
        "| case | ours s, median (min) | PyTorch s, median (min) | ratio | ours MiB | PyTorch MiB |"
    )
    print("|---|---|---|---|---|---|")
    results = []
    for task in tasks:
        load = os.getloadavg()[0]
        samples = in_new_process(time_in_turns, task, sides, rounds)
        peaks = {side: in_new_process(peak_of_task, task, side) for side in sides}
        medians = {side: statistics.median(samples[side]) for side in sides}
        ratio = medians["ours"] / medians["theirs"] if "theirs" in sides else None
        seconds = [
            f"{medians[side]:.3f} ({min(samples[side]):.3f})" if side in sides else "-"
            for side in ("ours", "theirs")
        ]
        mib = [f"{peaks[side]:.0f}" if side in sides else "-" for side in ("ours", "theirs")]
        cells = [task.title, *seconds, f"{ratio:.2f}" if ratio else "-", *mib]
        print("|", " | ".join(cells), "|", flush=True)
        results.append(
            {
                "case": task.title,
                "seconds": samples,
                "ratio": ratio,
                "peak_mib": peaks,
                "load": load,
            }
        )
    return results


def measure_objects(tasks: list[Task], rounds: int) -> list[dict[str, Any]]:
    """Measures a frame with its objects in one batch and one by one; prints a table."""
    print("| case | batch s, median (min) | one by one s, median (min) | ratio |")
    print("|---|---|---|---|")
    results = []
    for task in tasks:
        samples = in_new_process(time_in_turns, task, ["ours", "loop"], rounds)
        medians = {side: statistics.median(times) for side, times in samples.items()}
        seconds = [f"{medians[side]:.3f} ({min(samples[side]):.3f})" for side in samples]
        ratio = medians["ours"] / medians["loop"]
        print("|", " | ".join([task.title, *seconds, f"{ratio:.2f}"]), "|", flush=True)
        results.append({"case": task.title, "seconds": samples, "ratio": ratio})
    return results


def measure_stream(size: int, num_frames: int) -> dict[int, float]:
    """Measures the resident memory of a stream; prints a table."""
    start = time.perf_counter()
    resident = in_new_process(resident_over_stream, size, num_frames)
    seconds = time.perf_counter() - start
    print(f"tiny, {size} px, 2 objects, {num_frames} frames in {seconds:.0f} s\n")
    print("| frame |", " | ".join(map(str, resident)), "|")
    print("|---|" + "---|" * len(resident))
    print("| resident MiB |", " | ".join(f"{x:.0f}" for x in resident.values()), "|", flush=True)
    return resident


def measure_memory(clips: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Measures the peak memory of tracking clips given as (size, frames); prints a table."""
    print("| tiny, 1 object, keep_frames=16 | peak MiB | more than the clip above |")
    print("|---|---|---|")
    results: list[dict[str, Any]] = []
    for size, num_frames in clips:
        peak = in_new_process(peak_of_clip, size, num_frames)
        comparable = results and results[-1]["size"] == size
        more = f"{peak - results[-1]['peak_mib']:+.0f}" if comparable else "-"
        print(f"| {num_frames} frames, {size} px | {peak:.0f} | {more} |", flush=True)
        results.append({"size": size, "frames": num_frames, "peak_mib": peak})
    return results


def measure_compilation(models: list[str], size: int) -> list[dict[str, Any]]:
    """Measures compilation with an empty and with a filled cache; prints a table."""
    print("| program | lower s | compile s | lower again s | compile from cache s |")
    print("|---|---|---|---|---|")
    results = []
    for model in models:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
            os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            first, again = (in_new_process(compile_seconds, model, size) for _ in range(2))
            del os.environ["JAX_COMPILATION_CACHE_DIR"]
        for program in first:
            seconds = [*first[program], *again[program]]
            cells = " | ".join(f"{x:.1f}" for x in seconds)
            print(f"| {program}, {model}, {size} px | {cells} |", flush=True)
            results.append({"program": program, "model": model, "size": size, "seconds": seconds})
    return results


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; all by default")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each side")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side, except for memory")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores of both sides")
    parser.add_argument(
        "--clips",
        default="256:50,256:200,1024:8,1024:16",
        help="of the case memory, as pixels:frames; give equal sizes one after the other",
    )
    parser.add_argument("--stream", default="256:3000", help="of the case stream, as pixels:frames")
    parser.add_argument(
        "--device-only", action="store_true", help="our side alone, on the device that JAX finds"
    )
    parser.add_argument("--json", type=Path, help="also write all samples to this file")
    args = parser.parse_args()
    cases = args.cases.split(",")
    if unknown := set(cases) - set(CASES):
        parser.error(f"unknown cases {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    clips = [tuple(map(int, clip.split(":"))) for clip in args.clips.split(",")]

    # Children inherit all of this; this process itself computes nothing.
    sides = ["ours"]
    if not args.device_only:
        os.environ["JAX_PLATFORMS"] = "cpu"
        # XLA sizes its pool by the cores that it may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
        if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            sides.append("theirs")

    report: dict[str, Any] = {"machine": machine()}
    for key, value in report["machine"].items():
        print(f"- {key}: {value}")
    tasks = {
        "encode": [Task(model, args.size, 0) for model in (TINY, BASE)],
        "track": [Task(TINY, args.size, objects) for objects in (1, 4)],
        "clip": [Task(TINY, args.size, objects, frames=CLIP_FRAMES) for objects in (1, 4)],
        "train": [Task(TINY, 256, 2, trains=True)],
    }
    for case in cases:
        print(f"\n## {case}\n")
        if case in tasks:
            report[case] = measure_times(tasks[case], sides, args.rounds)
        elif case == "objects":
            tasks_256 = [Task(TINY, 256, n) for n in (1, 2, 4, 8, 16)]
            tasks_full = [Task(TINY, args.size, n) for n in (1, 2, 4)]
            report[case] = measure_objects(tasks_256 + tasks_full, args.rounds)
        elif case == "memory":
            report[case] = measure_memory(clips)
        elif case == "stream":
            report[case] = measure_stream(*map(int, args.stream.split(":")))
        else:
            report[case] = measure_compilation([TINY, LARGE], args.size)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
