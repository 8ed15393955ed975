"""The session as the dictionary that the original's state is.

Programs read the size of the video, the ids, the images and the answers under the original's names. What is
read is computed when it is asked for; of what is written, `images` (and its size and number), and an empty
`cached_features` take effect, and all else is refused.
"""

import collections
import functools
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import numpy as np

from sam2_jax.data.videos import Frames
from sam2_jax.model.sam2 import IMAGE_MEAN, IMAGE_STD
from sam2_jax.outputs import as_array, hand_out, to_host
from sam2_jax.predict import preprocessing

_KINDS = ("cond_frame_outputs", "non_cond_frame_outputs")
_SIZES = ("num_frames", "video_height", "video_width")


class Images:
    """Frames as the model's input, (3, S, S) float32 each, read when asked for."""

    def __init__(self, frames: Frames, size: int, outputs: str):
        self._frames, self._size, self._outputs = frames, size, outputs

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, 3, S, S)."""
        return len(self), 3, self._size, self._size

    def __getitem__(self, index: int) -> Any:
        if index < 0:
            index += len(self)
        if not self._frames.exists(index):
            raise IndexError(f"there is no frame {index}")
        pixels = np.asarray(preprocessing.frame_to_input(self._frames[index], self._size))
        normalised = (pixels / np.float32(255) - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)
        return hand_out(np.ascontiguousarray(normalised.transpose(2, 0, 1)), self._outputs)


class _OwnImages(Frames):
    """What a program put in the place of `images`: inputs of the model by frame, back to pixels."""

    def __init__(self, images: Any, height: int, width: int):
        self.images, self.height, self.width = images, height, width

    def __len__(self) -> int:
        return len(self.images)

    def _read(self, index: int) -> np.ndarray:
        image = np.asarray(as_array(self.images[index]), np.float32)
        pixels = image.transpose(1, 2, 0) * np.float32(IMAGE_STD) + np.float32(IMAGE_MEAN)
        return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)

    __getitem__ = _read


class _Answers(MutableMapping):
    """Answers of one object by frame, each as the dictionary the original keeps.

    What is deleted is forgotten: programs that never end drop old frames so.
    """

    def __init__(self, entries: dict[int, Any], outputs: str, forget: Callable[[int], Any]):
        self._entries, self._outputs, self._forget = entries, outputs, forget

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._entries))

    def __delitem__(self, frame: int) -> None:
        del self._entries[frame]
        self._forget(frame)

    def __setitem__(self, frame: int, answer: Any) -> None:
        raise TypeError(
            f"The answer on frame {frame} cannot be set: the session keeps it. Give a mask with add_new_mask, "
            "or go back to an earlier state with snapshot and restore."
        )

    def __getitem__(self, frame: int) -> dict[str, Any]:
        entry = self._entries[frame]
        give = lambda x: hand_out(np.array(x, np.float32), self._outputs)
        memory = None
        if entry.memory is not None:
            memory = give(entry.memory.get().transpose(2, 0, 1)[None])
        return {
            "pred_masks": give(entry.mask.get()[None, None]),
            "obj_ptr": give(entry.pointer.get()[None]),
            "object_score_logits": give([[entry.score]]),
            "iou": give([[entry.iou]]),
            "maskmem_features": memory,
        }


class StateKeys(MutableMapping):
    """Mix-in of `InferenceState`: the keys of the original's state."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]  (a session is itself, no value)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __bool__(self) -> bool:
        return True

    def _values(self) -> dict[str, Any]:
        """How each key is answered."""
        objects, outputs = list(self.objects.values()), self.model.outputs
        by_object = lambda read: {n: read(history) for n, history in enumerate(objects)}

        def answers(*kept):
            """Of conditioning and of other frames: what there is, and what it is forgotten from."""

            def forget(frame, source):
                del source[frame]
                self._change()

            return {
                key: _Answers(
                    {t: entry for t, entry in entries.items() if entry is not None},
                    outputs,
                    functools.partial(forget, source=source),
                )
                for key, (entries, source) in zip(_KINDS, kept, strict=True)
            }

        def pending(history, is_wanted):
            return {
                t: entry for t, (entry, is_cond) in history.pending.items() if is_cond == is_wanted
            }, history.pending

        def points(history):
            return {
                t: {"point_coords": to_host(p[None]), "point_labels": np.array(x[None])}
                for t, (p, x) in history.points.items()
            }

        return {
            "images": lambda: Images(self.frames, self.model.config.image_size, outputs),
            "num_frames": lambda: self.num_frames,
            "video_height": lambda: self.frames.height,
            "video_width": lambda: self.frames.width,
            "device": lambda: self.model.device,
            "storage_device": lambda: self.model.device,
            "offload_video_to_cpu": lambda: True,
            "offload_state_to_cpu": lambda: True,
            "obj_ids": lambda: self.obj_ids,
            "obj_id_to_idx": lambda: collections.OrderedDict(
                (obj_id, n) for n, obj_id in enumerate(self.objects)
            ),
            "obj_idx_to_id": lambda: collections.OrderedDict(enumerate(self.objects)),
            "point_inputs_per_obj": lambda: by_object(points),
            "mask_inputs_per_obj": lambda: by_object(
                lambda history: {t: to_host(m[None, None]) for t, m in history.masks.items()}
            ),
            "cached_features": lambda: dict(self._features),
            "constants": dict,
            "output_dict_per_obj": lambda: by_object(
                lambda h: answers((h.prompted, h.prompted), (h.tracked, h.tracked))
            ),
            "temp_output_dict_per_obj": lambda: by_object(
                lambda h: answers(pending(h, True), pending(h, False))
            ),
            "frames_tracked_per_obj": lambda: by_object(
                lambda history: {t: {"reverse": d < 0} for t, d in history.directions.items()}
            ),
            "tracking_has_started": lambda: any(h.directions for h in objects),
        }

    def __getitem__(self, key: str) -> Any:
        return self._values()[key]()

    def __contains__(self, key: object) -> bool:
        return key in self._values()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "images":
            self.frames = _OwnImages(value, self.frames.height, self.frames.width)
            self._features.clear()
        elif key == "cached_features" and not value:
            self._features.clear()
        elif key in _SIZES[1:] and isinstance(self.frames, _OwnImages):
            setattr(self.frames, key.removeprefix("video_"), int(value))
        elif not (key in _SIZES and value == self[key]):
            raise TypeError(
                f'state[{key!r}] cannot be set to this: the session keeps it. "images" can be replaced, and '
                '"cached_features" emptied; for all else there are the methods of the predictor.'
            )

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        if key == "cached_features":
            self._features.clear()

    def pop(self, key: str, *default: Any) -> Any:
        """The value of a key, which stays; a program that is done calls it to let go."""
        if key not in self:
            return super().pop(key, *default)
        value = self[key]
        del self[key]
        return value

    def clear(self) -> None:
        """Forgets objects, answers and features."""
        self._features.clear()
        self.reset()

    def __deepcopy__(self, memo: dict[int, Any]) -> "StateKeys":
        """A session on the same video that goes its own way from here; answers are shared, not copied."""
        session: Any = type(self)
        other = session(
            self.model, self.frames, self.store, self.keep_frames, self.results, self.snapshot()
        )
        memo[id(self)] = other
        return other

    def __copy__(self) -> "StateKeys":
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        raise TypeError(
            "A session is not pickled: save it with predictor.save_state(state, path) and take it up with "
            "predictor.load_state(path), in another process, too."
        )
