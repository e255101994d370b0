"""Slips that users make, tried on every public function: one argument at a time is replaced by something wrong.

A file `slips_<part>.py` beside this one holds the correct calls of some modules:

    from slips import Call

    CALLS = {
        "core.data_root": Call(lambda folder: {"root": folder}),
        "snn.LIF": Call(lambda folder: {"decay": 0.5, "v_th": 1.0}),                      # the constructor
        "snn.LIF.forward": Call(lambda folder: {"x": torch.rand(3, 2)}, LIF().forward),   # any other way in
    }
    LEFT_OUT = {"core.use_house_style": "takes no argument"}

`given` returns fresh keyword arguments of a correct call that takes milliseconds, and may write into an empty folder. Every argument that
is given is slipped, so give them all, also those with a default. A slip must end in a `TypeError`, a `ValueError` or a subclass of these
(`OSError` for a path), raised in our code, with a message that names the argument, and with nothing changed: neither the other arguments
nor the folder. Some slips may also give the right result: whatever is NumPy's in place of Python's or of torch's (the same result), NaN
(then the result holds NaN), a tensor without elements (then one is in the result), a tensor on the meta device (likewise).

A slip that is legitimate for one function is listed in `legitimate={"argument": reason}` or `{"argument: slip": reason}`, the label of the
slip being the one that a failure shows. Use it only where the result is right.
"""

import copy
import decimal
import fractions
import importlib
import inspect
import numbers
import random
import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

PACKAGE = Path(importlib.import_module("neurobridge").__file__).parent


@dataclass
class Call:
    given: Callable[[Path], dict[str, Any]]  # fresh arguments of a correct call
    target: Callable | None = None  # what is called with them; None: the public name
    legitimate: dict[str, str] = field(
        default_factory=dict
    )  # "argument" or "argument: slip" -> reason
    named: dict[str, str] = field(
        default_factory=dict
    )  # argument -> the word by which messages name it, where it is another
    view: Callable = lambda result: (
        result
    )  # what of the result is compared: not seconds, not a file's time


@dataclass
class Slip:
    label: str
    value: Any
    may: str  # "refuse", or what may happen instead: "same", "nan", "empty", "meta"


class Foreign:
    "An object of a library that nobody has heard of."

    def __repr__(self) -> str:
        return "<Foreign>"


def rooms() -> list[str]:
    return [
        folder.name for folder in sorted(PACKAGE.iterdir()) if (folder / "__init__.pyi").exists()
    ]


def public(room: str) -> list[str]:
    "Public functions and classes of a room: what can be called with a wrong argument."
    front = importlib.import_module(f"neurobridge.{room}")
    things = {name: getattr(front, name) for name in front.__all__}
    errors = [
        name
        for name, thing in things.items()
        if isinstance(thing, type) and issubclass(thing, BaseException)
    ]
    return [
        name
        for name, thing in things.items()
        if isinstance(thing, types.FunctionType | type) and name not in errors
    ]


def resolve(name: str) -> Callable:
    room, public_name, *_ = name.split(".")
    return getattr(importlib.import_module(f"neurobridge.{room}"), public_name)


# What is a slip


def _hints(target: Callable) -> dict[str, Any]:
    plain = target.__init__ if isinstance(target, type) else target
    try:
        return typing.get_type_hints(getattr(plain, "__func__", plain))
    except Exception:
        return getattr(plain, "__annotations__", {})


def _options(hint: Any) -> list[Any]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [each for part in typing.get_args(hint) for each in _options(part)]
    return [hint]


def _fits(value: Any, hint: Any) -> bool:
    for each in _options(hint):
        try:
            if each is Any or isinstance(value, typing.get_origin(each) or each):
                return True
        except TypeError:
            continue
    return False


def _tensor_slips(value: Tensor, hint: Any) -> Iterator[Slip]:
    typed = any(
        hasattr(each, "dim_str") for each in _options(hint)
    )  # jaxtyping knows axes and data type
    yield Slip(
        "NumPy array",
        value.detach().cpu().numpy() if value.dtype != torch.bfloat16 else np.zeros(value.shape),
        "same",
    )
    yield Slip("nested list", value.tolist(), "same")
    yield Slip("text", "x", "refuse")
    yield Slip("table", pd.DataFrame({"a": [1.0, 2.0]}), "refuse")
    yield Slip("meta device", value.to("meta"), "meta")
    if value.ndim and value.numel():
        yield Slip("first axis empty", value.narrow(0, 0, 0), "empty")
        yield Slip("last axis empty", value.narrow(-1, 0, 0), "empty")
    if value.is_floating_point() and value.numel():
        holed = value.detach().clone()
        holed.view(-1)[0] = float("nan") if holed.is_contiguous() else 0
        yield Slip("NaN", holed if holed.is_contiguous() else holed.fill_(float("nan")), "nan")
    if typed:
        others = {
            "one axis more": value[None],
            "one axis less": value[0] if value.ndim and len(value) else value,
            "a number": value.flatten()[0] if value.numel() else value,
        }
        others |= {"complex": value.to(torch.complex64), "boolean": value.bool()}
        others |= (
            {"integers": value.round().long()}
            if value.is_floating_point()
            else {"floats": value.float() + 0.5}
        )
        for label, other in others.items():
            if not _fits(other, hint):
                yield Slip(label, other, "refuse")


def _array_slips(value: np.ndarray) -> Iterator[Slip]:
    if value.dtype.kind in "fiu":
        yield Slip("tensor", torch.from_numpy(np.ascontiguousarray(value)), "same")
        yield Slip("complex", value.astype(complex), "refuse")
    yield Slip("text", "x", "refuse")
    yield Slip("array of text", np.full(value.shape, "a"), "refuse")
    yield Slip("array of objects", np.full(value.shape, Foreign(), dtype=object), "refuse")
    if value.size:
        yield Slip("first axis empty", value[:0], "empty")
        yield Slip("one axis more", value[None], "refuse")
    if value.dtype.kind == "f" and value.size:
        holed = value.copy()
        holed.flat[0] = np.nan
        yield Slip("NaN", holed, "nan")


def slips(value: Any, hint: Any = None) -> Iterator[Slip]:
    "Wrong versions of a correct argument."
    if hint is not Any or value is not None:
        yield Slip("foreign object", Foreign(), "refuse")
    optional = value is None or (hint is not None and _fits(None, hint))
    if not optional:
        yield Slip("None", None, "refuse")
    if isinstance(value, bool | np.bool_):
        yield from [
            Slip("text", "yes", "refuse"),
            Slip("2", 2, "refuse"),
            Slip("NumPy bool", np.bool_(value), "same"),
            Slip("tensor", torch.ones(2), "refuse"),
        ]
    elif isinstance(value, int):
        yield from [
            Slip("text", str(value), "refuse"),
            Slip("list", [value], "refuse"),
            Slip("NumPy integer", np.int64(value), "same"),
        ]
        yield from [
            Slip("float", float(value), "same"),
            Slip("tensor", torch.tensor([0.5, 0.5]), "refuse"),
            Slip("NaN", float("nan"), "refuse"),
        ]
        if not _fits(0.5, hint):
            yield Slip("half", value + 0.5, "refuse")
    elif isinstance(value, float):
        yield from [
            Slip("text", str(value), "refuse"),
            Slip("list", [value], "refuse"),
            Slip("NumPy float", np.float64(value), "same"),
        ]
        yield from [
            Slip("Decimal", decimal.Decimal(str(value)), "same"),
            Slip("NaN", float("nan"), "refuse"),
            Slip("complex", 1j, "refuse"),
        ]
        if not _fits(torch.ones(2), hint):
            yield Slip("learned", nn.Parameter(torch.tensor(value)), "refuse")
    elif isinstance(value, str):
        yield from [
            Slip("number", 3, "refuse"),
            Slip("bytes", value.encode(), "same"),
            Slip("list", [value], "refuse"),
        ]
        if any(typing.get_origin(each) is typing.Literal for each in _options(hint)):
            yield from [
                Slip("unknown word", "no such word", "refuse"),
                Slip("empty text", "", "refuse"),
                Slip("tensor", torch.ones(2), "refuse"),
            ]
    elif isinstance(value, Tensor):
        yield from _tensor_slips(value, hint)
    elif isinstance(value, np.ndarray):
        yield from _array_slips(value)
    elif isinstance(value, nn.Module):
        yield from [
            Slip("its class", type(value), "refuse"),
            Slip("text", "net", "refuse"),
            Slip("state dict", value.state_dict(), "refuse"),
            Slip("tensor", torch.ones(2), "refuse"),
        ]
    elif isinstance(value, Path):
        yield from [
            Slip("number", 3, "refuse"),
            Slip("list", [value], "refuse"),
            Slip("text", str(value), "same"),
        ]
    elif isinstance(value, dict):
        yield from [
            Slip("list", list(value), "refuse"),
            Slip("text", "x", "refuse"),
            Slip("number", 3, "refuse"),
        ]
    elif isinstance(value, list | tuple):
        yield from [
            Slip("number", 3, "refuse"),
            Slip("a fraction", fractions.Fraction(1, 3), "refuse"),
        ]
    elif isinstance(value, torch.Generator):
        yield from [
            Slip("seed", 3, "refuse"),
            Slip("NumPy generator", np.random.default_rng(0), "refuse"),
        ]
    elif callable(value):
        yield from [Slip("text", "mse", "refuse"), Slip("number", 3, "refuse")]
    elif isinstance(value, pd.DataFrame):
        yield from [
            Slip("text", "x", "refuse"),
            Slip("number", 3, "refuse"),
            Slip("list", [1, 2], "refuse"),
        ]


# What came of it


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, nn.Module):
        yield from value.state_dict().values()
    elif isinstance(value, pd.DataFrame | pd.Series):
        yield from [value.to_numpy()]
    elif isinstance(value, dict):
        for key in value:
            yield key
            yield from _leaves(value[key], depth + 1)
    elif isinstance(value, list | tuple | set | types.GeneratorType):
        for each in value:
            yield from _leaves(each, depth + 1)
    elif (
        not isinstance(value, Tensor | np.ndarray | str | bytes | int | float | complex | type)
        and hasattr(value, "__dict__")
        and depth < 6
    ):
        for key, each in vars(value).items():
            yield key
            yield from _leaves(each, depth + 1)
    else:
        yield value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor | np.ndarray) and isinstance(b, Tensor | np.ndarray):
        a, b = (
            torch.tensor(each)
            if isinstance(each, np.ndarray) and each.dtype.kind in "fiub"
            else each
            for each in (a, b)
        )
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            a, b = a.detach(), b.detach()
            return a.shape == b.shape and (
                torch.equal(a, b)
                if a.is_complex()
                else torch.allclose(a.double(), b.double(), equal_nan=True)
            )
        return np.array_equal(np.asarray(a), np.asarray(b))
    if isinstance(a, bool | np.bool_) and isinstance(b, bool | np.bool_):
        return bool(a) == bool(b)
    if isinstance(a, numbers.Real) and isinstance(b, numbers.Real):
        return a == b or (a != a and b != b) or abs(a - b) <= 1e-6 * max(abs(a), abs(b))
    if type(a) is not type(b) or callable(a):
        return type(a) is type(b)
    try:
        return bool(a == b) or "0x" in repr(a)
    except (ValueError, TypeError, RuntimeError):
        return False


def same(a: Any, b: Any) -> bool:
    first, second = list(_leaves(a)), list(_leaves(b))
    return len(first) == len(second) and all(map(_equal, first, second))


def _holds(result: Any, what: str) -> bool:
    for leaf in _leaves(result):
        if isinstance(leaf, Tensor) and (
            (what == "meta" and leaf.is_meta) or (what == "empty" and leaf.numel() == 0)
        ):
            return True
        if what == "empty" and isinstance(leaf, np.ndarray) and leaf.size == 0:
            return True
        if what == "nan" and isinstance(leaf, Tensor | np.ndarray | float):
            values = np.asarray(
                leaf.detach().cpu().double()
                if isinstance(leaf, Tensor) and not leaf.is_complex()
                else leaf
            )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                return True
    return what == "empty" and result is not None and not list(_leaves(result))


def _fingerprint(given: dict[str, Any], folder: Path) -> list[Any]:
    held = []
    for value in given.values():
        if isinstance(value, nn.Module):
            held += [
                copy.deepcopy(value.state_dict()),
                [module.training for module in value.modules()],
            ]
        elif isinstance(value, Tensor | np.ndarray):
            held.append(copy.deepcopy(value.detach() if isinstance(value, Tensor) else value))
    files = sorted(
        (str(file.relative_to(folder)), file.stat().st_size)
        for file in folder.rglob("*")
        if file.is_file()
    )
    return [held, files]


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _raised_by_us(error: BaseException) -> bool:
    frames = error.__traceback__
    while frames.tb_next is not None:
        frames = frames.tb_next
    return Path(frames.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def _outcome(
    call: Call, target: Callable, name: str, slip: Slip, good: Any, folder: Path
) -> str | None:
    folder.mkdir()
    _seed()
    given = call.given(folder)
    is_path = isinstance(given[name], Path)
    given[name] = slip.value
    before = _fingerprint({key: value for key, value in given.items() if key != name}, folder)
    _seed()
    try:
        result = call.view(target(**given))
        leaves = list(_leaves(result))
    except (TypeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and not is_path and not isinstance(error, ValueError):
            return f"raises {type(error).__name__}: {error}"
        if not _raised_by_us(error):
            return f"raises from inside another library: {type(error).__name__}: {str(error)[:200]}"
        if not re.search(rf"\b{re.escape(call.named.get(name, name))}\b", str(error)):
            return f"the message does not name {name!r}: {str(error)[:200]}"
        if not same(
            before,
            _fingerprint({key: value for key, value in given.items() if key != name}, folder),
        ):
            return "is refused, but something was changed or written before"
        return None
    except Exception as error:
        return f"raises {type(error).__name__}: {str(error)[:200]}"
    if slip.may != "refuse" and _holds(result, slip.may):
        return None
    if (
        slip.may in ("same", "meta", "empty", "nan")
        and len(leaves) == len(good)
        and all(map(_equal, leaves, good))
    ):
        if slip.may == "same":
            return None
    return f"is taken, with the result {str(result)[:120]!r}"


def failures(key: str, call: Call, folder: Path) -> list[str]:
    "All slips of one function that end in anything but a refusal in plain words or the right result."
    target = call.target or resolve(key)
    hints = _hints(target) or _hints(resolve(key))
    (folder / "good").mkdir()
    _seed()
    given = call.given(folder / "good")
    _seed()
    good = list(_leaves(call.view(target(**given))))
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(target).parameters.items()
    }
    found, count = [], 0
    for name, value in given.items():
        if name in call.legitimate:
            continue
        hint = hints.get(name)
        if defaults.get(name, inspect.Parameter.empty) is None:
            union = isinstance(hint, type | types.UnionType)
            optional = (hint | None) if union else typing.Optional[hint]  # noqa: UP045
            hint = optional if hint else type(None)
        for slip in slips(value, hint):
            if f"{name}: {slip.label}" in call.legitimate:
                continue
            count += 1
            wrong = _outcome(call, target, name, slip, good, folder / str(count))
            if wrong:
                found.append(f"{key}({name} = {slip.label}) {wrong}")
    return found
