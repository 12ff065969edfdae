"""A quarter of PyTorch's import put off until it is wanted, which in drawing it is not."""

import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

UNUSED = "torch._meta_registrations"
"""Kernels in Python for tensors that are shapes alone, with the two libraries of functions in Python that it imports.
PyTorch's compiler and exporter compute with them, and no drawing does: such tensors are made and filled without."""

TRIED_IN = {"2.11": (), "2.14": ("torch._prims",)}
"""Releases of PyTorch that draw without it -> which of its imports they want all the same; others get it at once."""

_IMPORTS = "torch._prims", "torch._refs"
"""Imports of it that code takes for imported with PyTorch: `torch.broadcast_shapes` the second, `_CIRCLE` the first."""

_CIRCLE = "torch.utils._content_store"
"""Only the first can import it, which it imports; PyTorch's compiler asks for it alone, so it is imported at once."""

_RUNNING = threading.RLock()


class _Module(ModuleType):
    """What an import gives meanwhile; it becomes the module that it stands for."""

    def __getattr__(self, name: str) -> Any:
        # Whoever goes through all modules asks each for its file, its path and the like: that is no use of them.
        if not name.startswith("__") or name == "__all__":
            with _RUNNING:
                run = self.__dict__.pop("_sdxl_run", None)
                if run is not None:
                    run(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


class _Later(Loader):
    """Makes a module without running it.

    Args:
        run: what Python's loader does with the module that it has made.
        wanted: modules to import in its place.
    """

    def __init__(self, run: Callable[[ModuleType], None], wanted: Sequence[str]) -> None:
        self.run, self.wanted = run, wanted

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_sdxl_run"] = self.run
        for name in self.wanted:
            import_module(name)
        later = {name: _Module(name) for name in _IMPORTS if name not in sys.modules}
        for name, stand_in in later.items():
            stand_in.__dict__["_sdxl_run"] = _become_the_import
            setattr(sys.modules["torch"], name.rpartition(".")[2], stand_in)
        sys.modules.update(later)
        import_module(_CIRCLE)
        for name in later:
            del sys.modules[name]


def _become_the_import(module: ModuleType) -> None:
    """Run what a module stands for, which takes its place."""
    vars(module).update(vars(import_module(module.__name__)))


def _release() -> str | None:
    """Of PyTorch, as in 2.11 for 2.11.0+cu130; None for what is none, such as 2.11.0a0+git."""
    version = str(getattr(sys.modules["torch"], "__version__", "")).partition("+")[0]
    found = re.fullmatch(r"(\d+\.\d+)\.\d+(\.post\d+)?", version)
    return found and found[1]


class _Finder(MetaPathFinder):
    """Finds as Python does, and leaves to another loader what is to be put off."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != UNUSED:
            return None
        release = _release()
        spec = PathFinder.find_spec(name, path, target) if release in TRIED_IN else None
        if release is not None and spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader.exec_module, TRIED_IN[release])
        return spec


@contextmanager
def put_off() -> Iterator[None]:
    """Around the first import of PyTorch: what is unused runs when something of it is first asked for, be it later."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
