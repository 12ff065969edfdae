"""What a picture says of how it was made: hashes of the weights, versions, device."""

import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sdxl_core
from sdxl_cli.places import hash_cache
from sdxl_core.checkpoints.hashing import file_hash
from sdxl_core.errors import CheckpointError
from sdxl_core.plan import Plan
from sdxl_core.records import Record, Role, Weights

if TYPE_CHECKING:
    from sdxl_core.engine import Engine


class Hashes:
    """The sha256 of the weights' files, computed beside the sampling; a file that cannot be hashed has none."""

    def __init__(self, files: Sequence[tuple[Role, Path]]) -> None:
        self._files = files
        self._found: dict[Path, str] = {}
        # A daemon, so that an interrupted run need not wait for gigabytes to be read.
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        for _, path in self._files:
            try:
                self._found[path] = file_hash(path, cache=hash_cache())
            except CheckpointError:
                continue

    def weights(self) -> tuple[Weights, ...]:
        """Waits until all are known."""
        self._thread.join()
        return tuple(Weights(role=role, name=path.name, sha256=self._found.get(path)) for role, path in self._files)

    def record(self, stamped: Plan, calls: int, device_name: str) -> Record:
        """What a picture says of itself; waits as `weights` does.

        Args:
            stamped: its plan, with what the engine has resolved.
            calls: evaluations of the networks that it took.
            device_name: see `device_name`.
        """
        weights = self.weights()
        hashes = {w.role: w.sha256 for w in weights}
        known: dict[str, object] = {"file_sha256": hashes["model"], "vae_sha256": hashes.get("vae")}
        if stamped.refiner is not None:
            known["refiner"] = stamped.refiner.model_copy(update={"file_sha256": hashes["refiner"]})
        return Record(
            software=f"sdxl {sdxl_core.__version__}",
            plan=stamped.model_copy(update=known),
            sigmas=stamped.sigmas(),
            refiner_sigmas=stamped.refiner_sigmas(),
            switch=stamped.switch(),
            model_calls=calls,
            weights=weights,
            versions=_versions(),
            device_name=device_name,
        )


def _versions() -> dict[str, str]:
    import torch

    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if torch.version.cuda is not None and torch.cuda.is_available():
        versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    return versions


def device_name(engine: "Engine") -> str:
    """The GPU, or the kind of processor."""
    import torch

    if engine.device.type == "cuda":
        return torch.cuda.get_device_name(engine.device)
    return platform.machine()
