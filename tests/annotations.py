"""Annotated shapes and types are checked whenever a public function is called.

jaxtyping's own import hook would wrap every function, those inside of functions each time they are made, and
the constructors of pytrees, into which JAX puts things that are no arrays.
"""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any, get_args

import beartype
import jaxtyping
from beartype.door import is_bearable

_TYPECHECKER = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def _has_shape(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_shape, get_args(hint)))


def _check(owner: ModuleType | type, module: str) -> None:
    """Wraps the annotated public functions of a module, and of its classes."""
    for name, value in list(vars(owner).items()):
        if getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value) and inspect.ismodule(owner):
            _check(value, module)
        is_public = not name.startswith("_") or name == "__call__"
        if (
            is_public
            and inspect.isfunction(value)
            and _has_shape(tuple[*value.__annotations__.values()])
        ):
            setattr(owner, name, jaxtyping.jaxtyped(value, typechecker=_TYPECHECKER))


class _Finder(MetaPathFinder):
    def __init__(self, packages: tuple[str, ...], but: tuple[str, ...]):
        self.packages, self.but = packages, but

    def find_spec(self, fullname, path=None, target=None):
        is_inside = any(f"{fullname}.".startswith(f"{package}.") for package in self.packages)
        if not is_inside or fullname in self.but:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        execute: Callable = spec.loader.exec_module

        def execute_and_check(module):
            execute(module)
            _check(module, fullname)

        spec.loader.exec_module = execute_and_check
        return spec


def check(*packages: str, but: tuple[str, ...] = ()) -> None:
    """Checks calls of what is imported from these packages, some modules aside, from now on."""
    sys.meta_path.insert(0, _Finder(packages, but))


def wrong_fields(value: Any) -> list[str]:
    """The fields of a dataclass that are not what their annotations say, taken together."""
    with jaxtyping.jaxtyped("context"):
        fields = dataclasses.fields(value)
        return [f.name for f in fields if not is_bearable(getattr(value, f.name), f.type)]
