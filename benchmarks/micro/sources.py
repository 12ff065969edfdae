"""The icon sets and names that the pictures are drawn from: pinned npm packages, fetched once and checked."""

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Package:
    """One npm package: exact version, tarball name and sha256, licence."""

    name: str
    version: str
    tarball: str
    sha256: str
    licence: str


NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "iconify-json-noto-1.2.9.tgz",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "Apache-2.0",
)
FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "iconify-json-fluent-emoji-flat-1.2.6.tgz",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
)
NAMES = Package(
    "unicode-emoji-json",
    "0.9.0",
    "unicode-emoji-json-0.9.0.tgz",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "MIT",
)
STYLES = {"noto": NOTO, "flat": FLAT}
PACKAGES = (NOTO, FLAT, NAMES)


@dataclass(frozen=True)
class IconSet:
    """Drawings by slug, as complete SVG documents made on demand."""

    icons: dict[str, Any]
    aliases: dict[str, Any]
    width: int
    height: int

    def __contains__(self, slug: str) -> bool:
        return slug in self.icons or slug in self.aliases

    def svg(self, slug: str) -> str:
        """The SVG document of one drawing."""
        icon = self.icons[slug] if slug in self.icons else self.icons[self.aliases[slug]["parent"]]
        w, h = icon.get("width", self.width), icon.get("height", self.height)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>'
        )


def _read_json(package: Package, member: str, cache: Path) -> Any:
    path = cache / package.tarball
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}", "--pack-destination", str(cache)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != package.sha256:
        raise SystemExit(f"{path} is not {package.name} {package.version}: sha256 {found}, expected {package.sha256}")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        stream = archive.extractfile(f"package/{member}")
        assert stream is not None
        return json.load(stream)


def load_icon_sets(cache: Path) -> dict[str, IconSet]:
    """Fetch (or take from `cache`) both icon sets, by style word."""
    sets = {}
    for style, package in STYLES.items():
        raw = _read_json(package, "icons.json", cache)
        sets[style] = IconSet(raw["icons"], raw.get("aliases", {}), raw["width"], raw["height"])
    return sets


def load_names(cache: Path) -> dict[str, tuple[str, str]]:
    """Official name and group of every emoji, by the slug that the icon sets use."""
    raw = _read_json(NAMES, "data-by-emoji.json", cache)
    return {entry["slug"].replace("_", "-"): (entry["name"], entry["group"]) for entry in raw.values()}
