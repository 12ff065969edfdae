import os
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from sdxl_core.config import Config
from sdxl_core.errors import PresetError
from sdxl_core.typed_toml import MAX_BYTES, build, dotted, read_toml


class Dog(Config):
    kind: Literal["dog"]
    legs: int = 4


class Bird(Config):
    kind: Literal["bird"]
    wings: tuple[float, float] = (1.0, 1.0)


class Zoo(Config):
    name: str = ""
    open: bool = True
    size: tuple[Annotated[int, Field(ge=1)], ...] = ()
    fee: Annotated[float, Field(gt=0, le=99.0, allow_inf_nan=False)] = 1.0
    animals: tuple[Annotated[Dog | Bird, Field(discriminator="kind")], ...] = ()
    chief: Dog | None = None


def zoo(text: str) -> Zoo:
    return build(Zoo, tomli.loads(text), lambda _: "zoo.toml")


def complaint(text: str) -> str:
    with pytest.raises(PresetError) as caught:
        zoo(text)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_toml_lists_fill_tuples() -> None:
    built = zoo('size = [1, 2]\nfee = 3\n[[animals]]\nkind = "bird"\nwings = [0.5, 2]\n[[animals]]\nkind = "dog"')
    assert built.size == (1, 2)
    assert built.fee == 3.0
    assert built.animals == (Bird(kind="bird", wings=(0.5, 2.0)), Dog(kind="dog"))


WRONG = {
    "nmae = 'x'": "nmae: unknown key; did you mean name?",
    "zzz = 1": "zzz: unknown key (known: animals, chief, fee, name, open, size)",
    "[chief]\nkind = 'dog'\nlgs = 3": "chief.lgs: unknown key; did you mean legs?",
    "[[animals]]\nkind = 'bird'\nwnigs = 3": "animals[0].wnigs: unknown key; did you mean wings?",
    "[[animals]]\nkind = 'dgo'": "animals[0]: expected dog or bird, got 'dgo'; did you mean dog?",
    "[[animals]]\nlegs = 3": "animals[0]: missing key kind",
    "animals = [3]": "animals[0]: expected a table, got 3",
    "[chief]": "chief.kind: missing",
    "[chief]\nkind = 'cat'": "chief.kind: expected dog, got 'cat'",
    "name = 3": "name: expected text, got 3",
    "name = 2020-01-01": "name: expected text, got datetime.date(2020, 1, 1)",
    "open = 1": "open: expected true or false, got 1",
    "size = [1, 2.5]": "size[1]: expected a whole number, got 2.5",
    "size = [1, true]": "size[1]: expected a whole number, got true",
    "size = [1, 0]": "size[1]: must be at least 1, got 0",
    "size = 3": "size: expected a list, got 3",
    "size = 'ab'": "size: expected a list, got 'ab'",
    "size = [[1]]": "size[0]: expected a whole number, got [1]",
    "fee = 'x'": "fee: expected a number, got 'x'",
    "fee = nan": "fee: expected a finite number, got nan",
    "fee = 0": "fee: must be more than 0.0, got 0",
    "fee = 100.0": "fee: must be at most 99.0, got 100.0",
    "chief = 3": "chief: expected a table, got 3",
    "[[animals]]\nkind = 'bird'\nwings = [1.0]": "animals[0].wings[1]: too few entries",
    "[[animals]]\nkind = 'bird'\nwings = [1.0, 2.0, 3.0]": "animals[0].wings: expected 2 entries, got 3",
    "name = 3\nopen = 3\nfee = -1": "name: expected text, got 3 (and 2 more)",
    f"open = '{'x' * 200}'": f"open: expected true or false, got '{'x' * 56}...",
    'open = "\\u001b[31m"': r"open: expected true or false, got '\x1b[31m'",
}


@pytest.mark.parametrize("text", WRONG)
def test_every_error_names_the_key_and_what_it_should_be(text: str) -> None:
    assert complaint(text) == f"zoo.toml: {WRONG[text]}"


def test_dotted() -> None:
    assert dotted(("network", "channel_mult", 1)) == "network.channel_mult[1]"
    assert dotted(("a", 0, "b")) == "a[0].b"


FILES: dict[str, tuple[bytes, str]] = {
    "syntax": (b"a = 1\nb = = 2\n", "line 2, column 5: invalid value"),
    "unclosed": (b'a = "', "line 1, column 6: "),
    "twice": (b"a = 1\na = 2\n", "cannot overwrite a value"),
    "not utf-8": (b"a = 1\nb = '\xff'\n", "line 2: not UTF-8 text"),
    "long number": (b"a = " + b"9" * 100_000, "limit"),
    "dots": (b".".join([b"a"] * 50_000) + b" = 1", ""),
    "nested lists": (b"a = " + b"[" * 100_000, "nested too deeply"),
    "nested tables": (b"a = " + b"{a=" * 100_000, "nested too deeply"),
    "too large": (b"#" * (MAX_BYTES + 1), "1000001 bytes are too many"),
    "a model": (b"\x08\0\0\0\0\0\0\0{}      ", "line 1"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_toml_is_refused_quickly_with_its_place(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(PresetError) as caught:
        read_toml(path)
    assert time.process_time() - start < 2
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\nb = 2\r\n")
    assert read_toml(tmp_path / "x.toml") == {"a": 1, "b": 2}


def test_missing_folders_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path, message in (
        (tmp_path / "none.toml", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe.toml", "not a regular file"),
        (Path("a\0.toml"), "null"),
    ):
        with pytest.raises(PresetError, match=message):
            read_toml(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from([*Zoo.model_fields, "kind", "legs", "wings", "x"])


@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=4))
def test_any_table_is_taken_or_refused_in_one_line(table: dict[str, object]) -> None:
    try:
        build(Zoo, table, lambda _: "zoo.toml")
    except PresetError as error:
        message = error.message
    else:
        return
    assert message.startswith("zoo.toml: ")
    assert "\n" not in message
