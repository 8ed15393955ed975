"""Prompts on the command line: `[OBJECT:]X,Y[,LABEL][@FRAME]`, boxes and masks likewise."""

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"

# {(object, frame): {"point": [[x, y, label]], "box": [[x0, y0, x1, y1]], "mask": [(H, W) bool]}}
Groups = dict[tuple[int, int], dict[str, list]]


class UserPrompt(NamedTuple):
    """One prompt of the command line.

    Attributes:
      kind: "point", "box" or "mask".
      obj: object id; None for a mask whose ids name the objects.
      frame: frame index.
      value: [x, y, label], [x0, y0, x1, y1], or the path of a mask.
    """

    kind: str
    obj: int | None
    frame: int
    value: Any


def _numbers(kind: str, counts: tuple[int, ...], usage: str) -> Callable[[str], UserPrompt]:
    def parse(text: str) -> UserPrompt:
        plain = "".join(text.split()).lower()
        match = re.fullmatch(rf"(?:(\d+):)?({_NUMBER}(?:,{_NUMBER})*)(?:@(\d+))?", plain)
        numbers = [float(x) for x in match[2].split(",")] if match else []
        if not match or len(numbers) not in counts:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {usage}")
        if kind == "point":
            label = numbers[2] if len(numbers) == 3 else 1
            if label not in (0, 1):
                raise argparse.ArgumentTypeError(
                    f"{text!r}: the third number is a label, 1 object or 0 background"
                )
            numbers = [*numbers[:2], label]
        return UserPrompt(kind, int(match[1] or 1), int(match[3] or 0), numbers)

    return parse


def _mask(text: str) -> UserPrompt:
    match = re.fullmatch(r"(?:(\d+):)?(.+?)(?:@(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form [OBJECT:]FILE[@FRAME]")
    return UserPrompt("mask", int(match[1]) if match[1] else None, int(match[3] or 0), match[2])


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Adds --point, --box and --mask, which are collected in `prompts`."""
    point = _numbers("point", (2, 3), "[OBJECT:]X,Y[,LABEL][@FRAME]")
    box = _numbers("box", (4,), "[OBJECT:]X0,Y0,X1,Y1[@FRAME]")
    add = lambda name, type, metavar, help: parser.add_argument(
        name, dest="prompts", action="append", type=type, metavar=metavar, help=help, default=[]
    )
    add("--point", point, "X,Y", "click on an object; repeatable")
    add("--box", box, "X0,Y0,X1,Y1", "box around an object; repeatable")
    add("--mask", _mask, "FILE.png", "mask of one or several objects; repeatable")


def group_prompts(prompts: list[UserPrompt], height: int, width: int) -> Groups:
    """Groups prompts by (object, frame); masks are read and split by id.

    Raises:
      ValueError: none given, outside of the picture, or several boxes or masks for one object.
    """
    from sam2_jax.predict.preprocessing import check_points

    if not prompts:
        raise ValueError(
            "no prompt was given: add --point X,Y, --box X0,Y0,X1,Y1 or --mask FILE.png"
        )
    groups: Groups = {}
    add = lambda obj, frame, kind, value: groups.setdefault(
        (obj, frame), {"point": [], "box": [], "mask": []}
    )[kind].append(value)
    for prompt in prompts:
        kind, obj, frame, value = prompt
        if kind == "mask":
            for one, mask in _read_mask(value, obj, height, width):
                add(one, frame, "mask", mask)
            continue
        corners = np.reshape(value if kind == "box" else value[:2], (1, -1, 2))
        labels = np.array([[2, 3] if kind == "box" else [1]])
        check_points(corners, labels, height, width, is_pixels=True)
        add(obj, frame, kind, value)
    for (obj, frame), group in groups.items():
        is_mixed = group["mask"] and group["box"] + group["point"]
        if len(group["box"]) > 1 or len(group["mask"]) > 1 or is_mixed:
            raise ValueError(
                f"object {obj} has several boxes, or a mask and another prompt, on frame {frame}: name "
                "different objects with OBJECT: before the prompt, as in --box 2:10,20,30,40"
            )
    return groups


def _read_mask(path: str, obj: int | None, height: int, width: int) -> list[tuple[int, np.ndarray]]:
    from sam2_jax.data.masks import SOFT_EDGE, is_soft, read_labels, read_palette_png

    if not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "not there"
        raise ValueError(
            f"--mask {path} is {kind}; a picture to prompt with is expected (--masks is for output)"
        )
    values, palette = read_palette_png(path)
    if obj is not None and palette is None and is_soft(values):
        ids = (values > SOFT_EDGE).astype(np.uint8)
    else:
        ids = read_labels(path)
    if ids.shape != (height, width):
        is_across = ids.shape == (width, height)
        raise ValueError(
            f"{path} is {ids.shape[1]} x {ids.shape[0]} pixels, the video {width} x {height}"
            + (": was one of them turned by its EXIF orientation?" if is_across else "")
        )
    present = [int(i) for i in np.unique(ids) if i]
    if not present:
        raise ValueError(f"{path} has no object: every pixel is 0")
    if obj is not None:
        return [(obj, ids > 0)]
    return [(i, ids == i) for i in present]


def arrays(group: dict[str, list]) -> dict[str, np.ndarray | None]:
    """Points, labels and box of one object as the predictors take them."""
    points = np.array(group["point"], np.float32).reshape(-1, 3)
    box = np.array(group["box"][0], np.float32) if group["box"] else None
    if not len(points):
        return {"points": None, "labels": None, "box": box}
    return {"points": points[:, :2], "labels": points[:, 2].astype(np.int32), "box": box}
