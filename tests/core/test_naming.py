import os
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdxl_core.errors import UsageError
from sdxl_core.naming import (
    DEFAULT_TEMPLATE,
    TEMPLATE_KEYS,
    Destination,
    NameFields,
    Names,
    NameTemplate,
    resolve_destination,
    sanitise,
    slug,
)
from sdxl_core.output import NameTakenError


def fields(prompt: str = "A red cat, sitting!", seed: int = 42) -> NameFields:
    return NameFields(
        seed=seed,
        prompt=prompt,
        width=832,
        height=1216,
        steps=30,
        sampler="dpmpp_2m",
        preset="sdxl-base-1.0",
        when=datetime(2026, 1, 31, 23, 59, 58),
    )


def names(directory: Path, template: str = DEFAULT_TEMPLATE, **options: object) -> Names:
    return Names(Destination(directory, NameTemplate(template), ".png", "png"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red cat, sitting!", "a-red-cat-sitting"),
        ("猫 と 犬", "猫-と-犬"),
        ("🐱🐱", "picture"),
        ("", "picture"),
        ("../../etc/passwd", "etc-passwd"),
        ("word " * 40, "-".join(["word"] * 12)),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


def test_a_name_tells_what_it_holds(tmp_path: Path) -> None:
    template = "{preset}-{width}x{height}-{steps}-{sampler}-{date}-{time}-{seed}-{prompt:.5}"
    path = names(tmp_path, template).next(fields())
    assert path == tmp_path / "sdxl-base-1.0-832x1216-30-dpmpp_2m-2026-01-31-235958-42-A red.png"


@pytest.mark.parametrize(
    "template",
    [
        "{seed.__class__}",
        "{prompt[0]}",
        "{seed!r}",
        "{}",
        "{0}",
        "{sead}",
        "{index:{seed}}",
        "{index:999999999}",
        "{seed:,}",
        "{prompt:>9999}",
        "{slug:.0}",
        "{slug",
        "../{seed}",
        "a/../../{seed}",
        "/tmp/{seed}",
        "a\0{seed}",
    ],
)
def test_a_template_that_reaches_further_is_refused(template: str) -> None:
    with pytest.raises(UsageError):
        NameTemplate(template)


def test_an_unknown_key_is_named_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="sead") as caught:
        NameTemplate("{sead}")
    assert "; did you mean {seed}?" in caught.value.message


KEYS = st.sampled_from([f"{{{key}}}" for key in TEMPLATE_KEYS])
LITERALS = st.text(alphabet="ab-_. /\\猫", max_size=4)


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=400), st.lists(st.one_of(KEYS, LITERALS), min_size=1, max_size=6), st.integers(0, 2**63))
def test_no_prompt_leaves_the_directory(prompt: str, parts: list[str], index: int) -> None:
    try:
        relative = NameTemplate("".join(parts)).format(fields(prompt).values(index))
    except UsageError:
        return
    path = Path(os.path.normpath(Path("/out") / relative))
    assert path.is_relative_to("/out")
    assert path != Path("/out")
    for part in relative.parts:
        assert len(part.encode()) <= 235
        assert not set(part) & set("\0\n\r\t/")


@given(st.text(max_size=400))
def test_sanitised_text_is_one_ordinary_name(text: str) -> None:
    clean = sanitise(text)
    assert clean
    assert clean not in (".", "..")
    assert not set(clean) & set('/\\:*?"<>|\0')
    assert len(clean.encode()) <= 100


def test_reserved_names_are_set_apart() -> None:
    assert NameTemplate("{slug}").format(fields("CON").values(1)) == Path("_con")


def test_the_index_goes_on_after_the_highest_in_the_directory(tmp_path: Path) -> None:
    for name in ("00007-1-old.png", "00003-1-old.png", "notes.txt"):
        (tmp_path / name).touch()
    given_out = names(tmp_path)
    assert given_out.next(fields()).name == "00008-42-a-red-cat-sitting.png"
    assert given_out.next(fields()).name == "00009-42-a-red-cat-sitting.png"


def test_a_template_without_index_counts_only_where_it_must(tmp_path: Path) -> None:
    (tmp_path / "42.png").touch()
    given_out = names(tmp_path, "{seed}")
    assert given_out.next(fields()).name == "42-2.png"
    assert given_out.next(fields()).name == "42-3.png"
    assert given_out.next(fields(seed=43)).name == "43.png"


def test_overwriting_gives_the_same_names_again(tmp_path: Path) -> None:
    (tmp_path / "00001-42-a-red-cat-sitting.png").touch()
    given_out = names(tmp_path, overwrite=True)
    assert given_out.next(fields()).name == "00001-42-a-red-cat-sitting.png"


def test_a_name_is_free_only_with_its_companion(tmp_path: Path) -> None:
    (tmp_path / "42.latent.safetensors").touch()
    assert names(tmp_path, "{seed}", companion=".latent.safetensors").next(fields()).name == "42-2.png"


def test_one_fixed_name_serves_one_picture(tmp_path: Path) -> None:
    given_out = names(tmp_path, "cat")
    given_out.check(fields(), 1)
    with pytest.raises(UsageError, match="2 pictures"):
        given_out.check(fields(), 2)
    (tmp_path / "cat.png").touch()
    with pytest.raises(NameTakenError, match="exists already"):
        given_out.check(fields(), 1)
    names(tmp_path, "cat", overwrite=True).check(fields(), 1)


@pytest.mark.parametrize(
    ("output", "format", "directory", "template", "suffix", "kind"),
    [
        (None, None, "outputs", DEFAULT_TEMPLATE, ".png", "png"),
        ("out", "webp", "out", DEFAULT_TEMPLATE, ".webp", "webp"),
        ("out.v2", None, "out.v2", DEFAULT_TEMPLATE, ".png", "png"),
        ("out.png/", None, "out.png", DEFAULT_TEMPLATE, ".png", "png"),
        ("cat.jpeg", None, ".", "cat", ".jpeg", "jpg"),
        ("a/b/cat.png", "png", "a/b", "cat", ".png", "png"),
        ("a/{preset}/{seed}", "jpg", "a", "{preset}/{seed}", ".jpg", "jpg"),
        ("a/x-{seed}.webp", None, "a", "x-{seed}", ".webp", "webp"),
        ("/abs/{seed}.PNG", None, "/abs", "{seed}", ".png", "png"),
    ],
)
def test_where_output_points(
    output: str | None, format: str | None, directory: str, template: str, suffix: str, kind: str
) -> None:
    found = resolve_destination(output, format)
    assert found == Destination(Path(directory), NameTemplate(template), suffix, kind)


def test_a_quoted_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_destination("~/cats/{seed}.png").directory == tmp_path / "cats"


def test_a_name_longer_than_any_file_system_allows_is_still_a_name() -> None:
    long = "n" * 300
    assert resolve_destination(long).directory == Path(long)
    with pytest.raises(UsageError, match="longer than"):
        Names(resolve_destination(f"{long}.png")).next(fields())


@pytest.mark.parametrize(("output", "format"), [("cat.gif", None), ("cat.png", "jpg"), ("", None), ("}{.png", None)])
def test_outputs_that_cannot_be_meant(output: str, format: str | None) -> None:
    with pytest.raises(UsageError):
        resolve_destination(output, format)
