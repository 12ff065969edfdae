"""What can be drawn: the curated table of things, joined with both icon sets and the official names."""

from dataclasses import dataclass
from pathlib import Path

import tomli
from sources import IconSet

TABLE = Path(__file__).with_name("things.toml")
CORE_THINGS = 204  # the last section of the table starts here
_AN_EXCEPTIONS = {"unicorn": "a", "ufo": "a", "hourglass": "an"}


@dataclass(frozen=True)
class Thing:
    """One drawable thing: `name` as typed, `slug` in the icon sets, `also` other names, `article` None for a or an."""

    name: str
    slug: str
    also: tuple[str, ...]
    article: str | None
    group: str

    def phrase(self, name: str | None = None) -> str:
        """The noun with its article: "a cat", "an apple", "the moon", "scissors"."""
        if name is not None and name != self.name:
            article = _article(name) if self.article is None else self.article
            # Another name of a plural is often a singular ("bunch of grapes"), and needs its own article.
            if self.article == "" and " of " in name:
                article = _article(name)
        else:
            name = self.name
            article = _article(name) if self.article is None else self.article
        return f"{article} {name}".strip()


def _article(noun: str) -> str:
    first = noun.split()[0]
    return _AN_EXCEPTIONS.get(first, "an" if first[0] in "aeiou" else "a")


def load_things(count: int, sets: dict[str, IconSet], official: dict[str, tuple[str, str]]) -> list[Thing]:
    """The first `count` things of the table; refuses unknown slugs and names given twice."""
    table = tomli.loads(TABLE.read_text(encoding="utf-8"))
    things: list[Thing] = []
    owner: dict[str, str] = {}
    for name, entry in table.items():
        slug = entry.get("slug", name.replace(" ", "-"))
        missing = [style for style, icons in sets.items() if slug not in icons]
        if missing or slug not in official:
            raise SystemExit(f"{TABLE.name}: {name}: no drawing {slug!r} in {missing or 'the official names'}")
        also = tuple(entry.get("also", ()))
        for word in (name, *also):
            if word in owner:
                raise SystemExit(f"{TABLE.name}: {word!r} names both {owner[word]} and {name}")
            owner[word] = name
        things.append(Thing(name, slug, also, entry.get("article"), official[slug][1]))
    return things[:count]
