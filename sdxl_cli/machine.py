"""Whether this machine has what a command line asks of it: seen with PyTorch, before anything of a model is read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdxl_cli.options import full_dtype

if TYPE_CHECKING:
    from sdxl_core.passes import Beside


def asks_of_machine(device: str, dtype: str, attention: str = "auto", passes: Sequence[str] | None = None) -> bool:
    """Whether anything is named that a machine may not have; what is left to us, every machine has in some way.

    Only this needs no PyTorch, whose import takes longer than all else that is checked.
    """
    named = attention != "auto" or bool(set(passes or ()) - {"auto"})
    return named or device.startswith("cuda") or full_dtype(dtype) not in ("auto", "float32")


def resolve_machine(device: str, dtype: str, passes: Sequence[str] | None = None) -> "Beside":
    """Where a model runs and in which precision, once its passes can be made there. Imports torch.

    Args:
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, or one by its full name.
        passes: keys of `PASSES`; None for those that it can have.

    Raises:
        DeviceError: no such device here, or it has not what is asked for.
    """
    from sdxl_core.devices import resolve_device, resolve_dtype
    from sdxl_core.passes import Beside, require_passes

    there = resolve_device(device)
    place = Beside(there, resolve_dtype(dtype, there))
    require_passes(place, passes)
    return place
