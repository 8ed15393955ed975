"""What predictors hand out: NumPy arrays that answer PyTorch's words, tensors, or device arrays.

Programs for the original end in `.cpu().numpy()`, and write into what they get.
"""

from typing import Any

import jax
import numpy as np

OUTPUTS = ("numpy", "torch", "jax")

_TORCH_DTYPES = {  # as `str(torch.float32)` names them; NumPy has no bfloat16
    "half": np.float16,
    "float": np.float32,
    "double": np.float64,
    "long": np.int64,
    "int": np.int32,
    "bfloat16": np.float32,
}


def check_outputs(outputs: str) -> str:
    """Returns the kind of results that is asked for; a ValueError lists the kinds."""
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs is {outputs!r}; expected one of {', '.join(OUTPUTS)}.")
    if outputs == "torch":
        _torch()
    return outputs


class HostArray(np.ndarray):
    """A NumPy array in host memory, writable, that answers the few words of `torch.Tensor` callers use.

    Indexing, arithmetic and comparisons keep it; a full reduction gives a NumPy scalar, as everywhere in
    NumPy. `size` is NumPy's count, not PyTorch's method.
    """

    def __array_wrap__(
        self, array: np.ndarray, context: Any = None, return_scalar: bool = False
    ) -> Any:
        return array[()] if return_scalar else array.view(HostArray)

    def cpu(self) -> "HostArray":
        """Itself: it is in host memory."""
        return self

    detach = contiguous = cpu

    def cuda(self, *_: Any, **__: Any) -> "HostArray":
        """Itself; `torch.from_numpy(x).cuda()` gives a tensor on a GPU."""
        return self

    def numpy(self, *_: Any, **__: Any) -> np.ndarray:
        """The same memory as a plain array."""
        return self.view(np.ndarray)

    def clone(self) -> "HostArray":
        """A copy."""
        return self.copy()

    def to(self, *args: Any, **kwargs: Any) -> "HostArray":
        """The array in the dtype among the arguments (NumPy's or PyTorch's); devices are let pass."""
        for given in (*args, *kwargs.values()):
            dtype = _numpy_dtype(given)
            if dtype is not None:
                return self.astype(dtype, copy=False)
        return self

    def float(self) -> "HostArray":
        """As float32; itself if it is."""
        return self.astype(np.float32, copy=False)

    def bool(self) -> "HostArray":
        """As bool: whether values are not 0."""
        return self.astype(np.bool_, copy=False)

    def int(self) -> "HostArray":
        """As int32."""
        return self.astype(np.int32, copy=False)

    def long(self) -> "HostArray":
        """As int64."""
        return self.astype(np.int64, copy=False)

    def permute(self, *axes: Any) -> "HostArray":
        """PyTorch's `permute`: NumPy's `transpose`."""
        return self.transpose(*axes)

    def unsqueeze(self, dim: Any) -> "HostArray":
        """With a new axis at `dim`."""
        return np.expand_dims(self, dim).view(HostArray)


def _numpy_dtype(given: Any) -> np.dtype | None:
    """The dtype that an argument of `to` names; None for a device, a flag or a number."""
    if isinstance(given, np.dtype):
        return given
    if isinstance(given, HostArray):
        return given.dtype
    if isinstance(given, type):
        return np.dtype(given)
    module, _, name = str(given).partition(".")  # "torch.float32", without importing torch
    if module != "torch":
        return None
    return np.dtype(_TORCH_DTYPES.get(name, name))


def to_host(x: Any) -> HostArray:
    """An array as a writable one on the host, float32 unless it is of bools: one copy."""
    host = np.asarray(x)
    dtype = host.dtype if host.dtype == np.bool_ else np.float32
    is_ready = host.flags.writeable and host.dtype == dtype
    return (host if is_ready else np.array(host, dtype)).view(HostArray)


def hand_out(x: jax.Array | np.ndarray, outputs: str) -> Any:
    """A result as the caller wants it.

    Args:
      x: an array that nobody else keeps, on the device or the host.
      outputs: "numpy" makes one copy, "jax" and, where both see the device, "torch" none.

    Returns:
      `HostArray`, `torch.Tensor` or `jax.Array`; of float32 or bools.
    """
    if outputs == "jax":
        return x if isinstance(x, jax.Array) else jax.numpy.asarray(x)
    if outputs == "numpy":
        return to_host(x)
    torch = _torch()
    if isinstance(x, jax.Array) and (
        x.devices().pop().platform == "cpu" or torch.cuda.is_available()
    ):
        return torch.from_dlpack(x)
    return torch.from_numpy(to_host(x).numpy())


def as_array(x: Any) -> Any:
    """What a caller gave, where it is a PyTorch tensor, as an array on the host.

    Tensors with gradients, on a GPU or of bfloat16 are taken, as the original takes them.
    """
    if x is None or isinstance(x, np.ndarray | jax.Array):
        return x
    if type(x).__module__.partition(".")[0] == "torch" and hasattr(x, "detach"):
        x = x.detach().cpu()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    if isinstance(x, list | tuple):
        return [as_array(each) for each in x]
    return x


def _torch() -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            'outputs="torch" needs PyTorch: pip install torch, or take outputs="numpy", whose arrays answer '
            ".cpu() and .numpy()."
        ) from error
    return torch
