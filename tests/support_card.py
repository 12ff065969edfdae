"""A stand-in for a card: a device with memory of its own, whose arithmetic the CPU does and whose bytes are counted.

Tensors on it are PyTorch's own, with storages, strides and views; their bytes lie in buffers that nothing else knows.
An operator that the CPU has a kernel for is carried out by that kernel, on another name for the same bytes, and what it
allocates belongs to the card. As on a real card tensors of two devices do not mix, and what crosses is copied.
"""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

NAME = "card"

# PyTorch gives this one device the name that a program asks for, and takes it in from other libraries by this number.
_KEY, _DLPACK_DEVICE = "PrivateUse1", 12

_COMPOSITE = ("convolution", "scaled_dot_product_attention")
"""Operators that ask the device which kernel to take, beside those with a kernel for the CPU."""

_RENEWING = ("resize_", "set_")
"""Operators that give a tensor another storage, which another name for it would not see."""

_CODES = {torch.bool: 6, torch.bfloat16: 4, torch.uint8: 1, torch.float8_e4m3fn: 10, torch.complex64: 5}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Managed(ctypes.Structure):
    """DLPack's `DLManagedTensor`: a tensor that another library owns, and what to call when nobody needs it."""


_Released = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))

_Managed._fields_ = (
    ("data", ctypes.c_void_p),
    ("device", _Device),
    ("ndim", ctypes.c_int32),
    ("dtype", _DataType),
    ("shape", ctypes.POINTER(ctypes.c_int64)),
    ("strides", ctypes.POINTER(ctypes.c_int64)),
    ("byte_offset", ctypes.c_uint64),
    ("owner", ctypes.c_void_p),
    ("released", _Released),
)

_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class Card:
    """What the card holds.

    Attributes:
        now: bytes of all storages there, each counted once, however many tensors look at it.
        peak: the most there were since `reset`.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.library: object = None  # the card's operators are there as long as this is
        self._kept: dict[int, tuple[Tensor, object]] = {}  # by the address of the storage
        self._released = _Released(lambda managed: self._drop(managed.contents.owner))

    def reset(self) -> None:
        """Look for the peak from now on."""
        self.peak = self.now

    def take(self, x: Tensor) -> Tensor:
        """A tensor of the CPU that nobody else holds, as one of the card: the same bytes."""
        if x.storage_offset() or not x.numel():
            x = x.clone() if x.numel() else torch.empty(1, dtype=x.dtype)[:0].view(x.shape)
        dims = ctypes.c_int64 * x.ndim
        kind = _DataType(_CODES.get(x.dtype, 2 if x.is_floating_point() else 0), 8 * x.itemsize, 1)
        address = x.untyped_storage().data_ptr()
        managed = _Managed(
            address,
            _Device(_DLPACK_DEVICE, 0),
            x.ndim,
            kind,
            dims(*x.shape),
            dims(*x.stride()),
            0,
            address,
            self._released,
        )
        self._kept[address] = x, managed
        self.now += x.untyped_storage().nbytes()
        self.peak = max(self.peak, self.now)
        taken: Tensor = torch.from_dlpack(_capsule(ctypes.addressof(managed), b"dltensor", None))
        return taken

    def look(self, x: Tensor) -> Tensor:
        """The CPU's name for the bytes of a tensor there."""
        if not x.numel():
            return torch.empty(x.shape, dtype=x.dtype)
        kept, _ = self._kept[x.untyped_storage().data_ptr()]
        name = torch.empty(0, dtype=x.dtype)
        return name.set_(kept.untyped_storage(), x.storage_offset(), x.shape, x.stride())  # type: ignore[call-overload]

    def _drop(self, address: int) -> None:
        kept, _ = self._kept.pop(address)
        self.now -= kept.untyped_storage().nbytes()

    def run(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Have the CPU do what an operator is asked to do with tensors there."""
        there: dict[int, Tensor] = {}
        names: list[tuple[Tensor, Tensor]] = []

        def to_cpu(x: Any) -> Any:
            if isinstance(x, torch.device):
                return torch.device("cpu") if x.type == NAME else x
            if not isinstance(x, Tensor):
                return x
            if x.device.type != NAME:
                if x.ndim:
                    raise RuntimeError(
                        f"{op}: expected all tensors to be on the same device, found {NAME} and {x.device}"
                    )
                return x
            names.append((x, self.look(x)))
            there[x.untyped_storage().data_ptr()] = x
            return names[-1][1]

        def to_card(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            for given, name in names:
                if x is name:  # written in place
                    return given
            address = x.untyped_storage().data_ptr()
            if address in there:
                base = there[address]
                assert base.dtype == x.dtype
                return torch.ops.aten.alias(base).as_strided_(x.shape, x.stride(), x.storage_offset())
            there[address] = self.take(x)
            return there[address]

        out = op(*_each(to_cpu, args), **{name: _each(to_cpu, value) for name, value in kwargs.items()})
        for given, name in names:
            if given.shape != name.shape:  # an empty one, to be filled
                assert not given.numel(), f"{op} gives a tensor another storage"
                given.data = self.take(name)
        return _each(to_card, out)

    def copy(self, source: Tensor, out: Tensor, non_blocking: bool = False) -> Tensor:
        """What crosses, and what is copied within."""
        near, far = (self.look(x) if x.device.type == NAME else x for x in (source, out))
        far.copy_(near)
        return out


def _each(fn: Callable[[Any], Any], x: Any) -> Any:
    return type(x)(_each(fn, part) for part in x) if type(x) in (list, tuple) else fn(x)


def _operators() -> Iterator[tuple[str, Any]]:
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        known = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") or rest in _COMPOSITE
        if space == "aten" and known and packet not in _RENEWING:
            yield rest, getattr(getattr(torch.ops.aten, packet), overload or "default")


PLUGS_IN = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
"""Whether this PyTorch can be given a device from Python."""


@contextmanager
def plugged_in() -> Iterator[Card]:
    """The card of this process, as empty as the caller has left it; modules move to and from it as to CUDA."""
    card, ours = _card(), torch.__future__.get_swap_module_params_on_conversion()
    gc.collect()
    card.reset()
    # By itself PyTorch keeps parameters the same objects, which several layers may share, on devices of its own alone.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield card
    finally:
        torch.__future__.set_swap_module_params_on_conversion(ours)


@cache
def _card() -> Card:
    card = Card()
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    card.library = library = torch.library.Library("aten", "IMPL")
    for name, op in _operators():
        library.impl(name, partial(card.run, op), _KEY)
    library.impl("_copy_from", card.copy, _KEY)
    return card
