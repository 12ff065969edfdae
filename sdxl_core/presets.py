"""Presets: TOML files by name or path, laid over each other, every value knowing where it came from.

A model file has a `[model]` table (what the weights are) and may have a `[recipe]` (how to run them); a recipe file
has a `[recipe]` and names what it builds on with `base`. Later layers win: default < model < recipe < user file <
flags.
"""

import copy
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from sdxl_core.config import Config, ModelConfig, RecipeConfig
from sdxl_core.errors import PresetError, UsageError
from sdxl_core.typed_toml import Place, Table, build, dotted, read_toml
from sdxl_core.unknown import suggestion

FLAGS = "flags"
DEFAULT = "default"
_CHOICES = ("sampler", "discretization")


@dataclass(frozen=True)
class Preset:
    """A model and how to run it.

    Args:
        name: the file's name without `.toml`.
        description: one line.
        model: what the weights are.
        recipe: how to run them.
        origins: for every dotted key of `values` where its value came from: `default`, `model NAME`, `recipe NAME`,
            `file PATH` or `flags`.
    """

    name: str
    description: str
    model: ModelConfig
    recipe: RecipeConfig
    origins: Mapping[str, str]

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """Every value under its dotted key, `model.network.channel_mult` and the like."""
        tree = {"model": self.model.model_dump(), "recipe": self.recipe.model_dump()}
        return MappingProxyType({dotted(place): value for place, value in _leaves(tree)})


@dataclass(frozen=True, slots=True)
class PresetEntry:
    """One line of the list of presets; a file that cannot be read is `broken`, and its description says why."""

    name: str
    kind: Literal["model", "recipe", "broken"]
    description: str
    source: Literal["shipped", "user"]
    path: Path


@dataclass(frozen=True, slots=True)
class _Layer:
    origin: str
    name: str
    path: Path
    table: Table

    @property
    def description(self) -> str:
        text = self.table.get("description", _table(self.table.get("model")).get("description", ""))
        return text if isinstance(text, str) else ""


class _Tree(Config):
    """What the layers of a preset must add up to."""

    model: ModelConfig
    recipe: RecipeConfig = RecipeConfig()


def shipped_file(relative: str) -> Path:
    """The path of a file that comes with the package, e.g. `models/sdxl-base-1.0.toml`; it may not exist."""
    package = Path(__file__).parent
    installed = package / "_presets"
    return (installed if installed.is_dir() else package.parent / "presets") / relative


def user_folder() -> Path:
    """Where the user's own presets lie: `sdxl/presets` in the configuration folder of the platform."""
    import platformdirs  # kept off the start-up path

    return platformdirs.user_config_path("sdxl", appauthor=False) / "presets"


def list_presets(user: Path | None = None) -> list[PresetEntry]:
    """All presets that have a name, models first.

    Args:
        user: folder of the user's own presets; None for the platform's (see `user_folder`).
    """
    entries = []
    for name, paths in sorted(_named(user).items()):
        for path, source in paths:
            try:
                table = read_toml(path)
                _check_document(path, table)
            except PresetError as error:
                entries.append(PresetEntry(name, "broken", error.message, source, path))
                continue
            kind: Literal["model", "recipe"] = "model" if "model" in table else "recipe"
            entries.append(PresetEntry(name, kind, _Layer("", name, path, table).description, source, path))
    return sorted(entries, key=lambda entry: (entry.kind, entry.name, entry.source))


def load_preset(
    name_or_path: str | Path, overrides: Mapping[str, Any] = MappingProxyType({}), *, user: Path | None = None
) -> Preset:
    """Read a preset and everything it builds on.

    Args:
        name_or_path: a name from `list_presets`, or a path (with a slash, or ending in `.toml`). A user's preset hides
            a shipped one of the same name, and may name that one as its base.
        overrides: values of the highest rank under dotted keys, `{"recipe.guider.scale": 7.0}`; None means not set.
        user: folder of the user's own presets; None for the platform's (see `user_folder`).

    Raises:
        PresetError: no such preset, broken TOML, or a key or value that the schema refuses; names file and key.
    """
    layers = _layers(str(name_or_path), user)
    origins: dict[str, str] = {}
    tree: Table = {}
    for layer in reversed(layers):
        _start_choices_anew(_names_of(layer.table), tree, origins)
        for key in ("model", "recipe"):
            if key in layer.table:
                _lay(tree, (key,), layer.table[key], layer.origin, origins)
    _start_choices_anew({key for key, value in overrides.items() if value is not None}, tree, origins)
    for key, value in overrides.items():
        if value is not None:
            _lay(tree, tuple(key.split(".")), value, FLAGS, origins)
    built = build(_Tree, tree, lambda place: _source(place, origins, layers))
    _check_choices(built.recipe, lambda place: _source(place, origins, layers))
    leaves = _leaves({"model": built.model.model_dump(), "recipe": built.recipe.model_dump()})
    named = {dotted(place): _origin(place, origins, tree) for place, _ in leaves}
    top = layers[0]
    return Preset(top.name, top.description, built.model, built.recipe, MappingProxyType(named))


def parts_owner(model: ModelConfig) -> ModelConfig | None:
    """The model from whose file one takes its text towers and first stage; None where its own has them.

    Raises:
        PresetError: there is no such model.
    """
    return None if model.parts_from is None else load_preset(model.parts_from).model


def parts_file(model: ModelConfig, path: Path) -> Path | None:
    """Where a model of file `path` takes its parts from: beside it; None where the file has them."""
    owner = parts_owner(model)
    return None if owner is None else path.with_name(owner.file.name)


def _layers(name_or_path: str, user: Path | None) -> list[_Layer]:
    """The file asked for and the bases under it, highest rank first."""
    layers = [_layer(*_locate(name_or_path, user))]
    while "model" not in layers[-1].table:
        layers.append(_layer(*_locate(layers[-1].table["base"], user, layers)))
    return layers


def _layer(path: Path, named: bool) -> _Layer:
    table = read_toml(path)
    _check_document(path, table)
    refiner = _table(_table(table.get("recipe")).get("refiner"))
    if isinstance(other := refiner.get("preset"), str) and _is_path(other):
        refiner["preset"] = os.path.abspath(path.parent / os.path.expanduser(other))
    kind = "model" if "model" in table else "recipe"
    return _Layer(f"{kind} {path.stem}" if named else f"file {path}", path.stem, path, table)


def _locate(name_or_path: str, user: Path | None, above: Sequence[_Layer] = ()) -> tuple[Path, bool]:
    """The file of a name or path, and whether it was a name; in a file, a relative path counts from its folder."""
    asked_by = f"{above[-1].path}: base: " if above else ""
    if _is_path(name_or_path):
        beside = above[-1].path.parent if above else Path()
        candidates, named = [beside / os.path.expanduser(name_or_path)], False
    else:
        known = _named(user)
        if name_or_path not in known:
            raise PresetError(
                f"{asked_by}no preset is named {name_or_path!a}{suggestion(name_or_path, known)}",
                hint=f"presets: {', '.join(sorted(known))}; a file is given as a path ending in .toml",
            )
        candidates, named = [path for path, _ in known[name_or_path]], True
    seen = {os.path.realpath(layer.path) for layer in above}
    for path in candidates:
        if os.path.realpath(path) not in seen:
            return path, named
    raise PresetError(f"{asked_by}the presets build on each other in a circle")


def _is_path(name_or_path: str) -> bool:
    return "/" in name_or_path or "\\" in name_or_path or name_or_path.endswith(".toml")


def _named(user: Path | None) -> dict[str, list[tuple[Path, Literal["shipped", "user"]]]]:
    """Name -> files of that name, the user's first."""
    found: dict[str, list[tuple[Path, Literal["shipped", "user"]]]] = {}
    folder = user_folder() if user is None else user
    for path in sorted(folder.glob("*.toml")):
        found.setdefault(path.stem, []).append((path, "user"))
    for kind in ("models", "recipes"):
        for path in sorted(shipped_file(kind).glob("*.toml")):
            found.setdefault(path.stem, []).append((path, "shipped"))
    return found


def _check_document(path: Path, table: Table) -> None:
    """The outermost keys; what stands in [model] and [recipe] is checked once all layers are together."""
    for key, kind in {"base": str, "description": str, "model": dict, "recipe": dict}.items():
        if key in table and not isinstance(table[key], kind):
            raise PresetError(f"{path}: {key}: expected {'text' if kind is str else f'a table [{key}]'}")
    known = ("base", "description", "model", "recipe")
    unknown = [key for key in table if key not in known]
    if unknown:
        near = suggestion(unknown[0], known) or f" (known: {', '.join(known)})"
        raise PresetError(f"{path}: {dotted((unknown[0],))}: unknown key{near}")
    if "model" in table and "base" in table:
        raise PresetError(f"{path}: base: a preset with a [model] of its own has no base")
    if "model" not in table and "base" not in table:
        raise PresetError(f"{path}: base: missing", hint='name a model or another recipe, e.g. base = "sdxl-base-1.0"')


def _names_of(table: Table) -> set[str]:
    """The dotted keys under which a layer names a sampler or a discretization."""
    recipe = _table(table.get("recipe"))
    return {f"recipe.{choice}.name" for choice in _CHOICES if "name" in _table(recipe.get(choice))}


def _start_choices_anew(given: Container[str], tree: Table, origins: dict[str, str]) -> None:
    """Where a layer names a sampler or a discretization, what lower layers said of theirs falls away."""
    for choice in _CHOICES:
        if f"recipe.{choice}.name" in given:
            _table(tree.get("recipe")).pop(choice, None)
            for key in [key for key in origins if key.startswith(f"recipe.{choice}.")]:
                del origins[key]


def _check_choices(recipe: RecipeConfig, source: Callable[[Place], str]) -> None:
    """Refuse what the tables of samplers and schedules do not know, naming the file and key that say so."""
    from sdxl_core.diffusion.samplers import check_options  # numpy is kept off the start-up path
    from sdxl_core.diffusion.schedules import check_schedule

    for table, config, check in (
        ("sampler", recipe.sampler, check_options),
        ("discretization", recipe.discretization, check_schedule),
    ):
        for key, options in [("name", {}), *((key, {key: value}) for key, value in config.options().items())]:
            place = ("recipe", table, key)
            try:
                check(config.name, options)
            except UsageError as error:
                raise PresetError(f"{source(place)}: {dotted(place)}: {error.message}", hint=error.hint) from None


def _lay(tree: Table, place: tuple[str, ...], value: Any, origin: str, origins: dict[str, str]) -> None:
    """Put a value at its place in the tree: tables join key by key, everything else replaces."""
    for step in place[:-1]:
        if not isinstance(tree.get(step), dict):
            tree[step] = {}
        tree = tree[step]
    _join(tree, place, value, origin, origins)


def _join(parent: Table, place: tuple[str, ...], value: Any, origin: str, origins: dict[str, str]) -> None:
    here = parent.get(place[-1])
    if isinstance(value, Mapping):
        if not isinstance(here, dict):
            here = parent[place[-1]] = {}
        for key, item in value.items():
            _join(here, (*place, key), item, origin, origins)
    else:
        parent[place[-1]] = copy.deepcopy(value)
    if not isinstance(value, Mapping) or not value:
        origins[dotted(place)] = origin


def _leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value that is not a table or a list of tables, with its place; a table with nothing in it is one."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*place, key))
    elif isinstance(value, tuple) and value and isinstance(value[0], Mapping):
        for index, item in enumerate(value):
            yield from _leaves(item, (*place, index))
    else:
        yield place, value


def _origin(place: Place, origins: Mapping[str, str], tree: Table) -> str:
    """Where a value of the finished preset came from; a default inside a list that a file gave is still a default."""
    here: Any = tree
    for step in place:
        if isinstance(here, Mapping) and step not in here:
            return DEFAULT
        here = here[step]
    return _nearest(place, origins) or DEFAULT


def _source(place: Place, origins: Mapping[str, str], layers: list[_Layer]) -> str:
    """The file to blame for an error at `place`; where nobody gave that key, one that gave something near it."""
    inside, beside = f"{dotted(place)}.", f"{dotted(place[:-1])}."
    givers = [_nearest(place, origins)]
    givers += [origin for key, origin in origins.items() if key.startswith(inside)]
    givers += [origin for key, origin in origins.items() if key.startswith(beside)]
    if FLAGS in givers[:1] or (givers[0] is None and FLAGS in givers):
        return FLAGS
    blamed = next((giver for giver in givers if giver is not None), None)
    return str(next((layer.path for layer in layers if layer.origin == blamed), layers[-1].path))


def _nearest(place: Place, origins: Mapping[str, str]) -> str | None:
    for length in range(len(place), 0, -1):
        origin = origins.get(dotted(place[:length]))
        if origin is not None:
            return origin
    return None


def _table(value: Any) -> Table:
    return value if isinstance(value, dict) else {}
