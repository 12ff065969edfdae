"""Where the latent of a lost picture is kept, for whom, and what is said of it."""

import os
import tempfile
from pathlib import Path

import pytest
from support_files import room_for

from sdxl_cli.keeping import keep_latent
from sdxl_core.errors import OutputError

LATENT = b"all that was drawn"


@pytest.fixture(autouse=True)
def spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "spare"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def kept(picture: Path, *, overwrite: bool = False) -> str:
    """The message of the error."""
    error = OutputError("no room", hint="make some")
    keep_latent(LATENT, picture, error, overwrite=overwrite, within=Path("out"))
    told = error.message.removeprefix("no room")
    assert error.hint == (
        "make some"
        if not told
        else f"make some; 'sdxl decode {told.partition(' kept in ')[2]}' makes the picture of it"
    )
    return told


@pytest.mark.parametrize("overwrite", [False, True])
def test_beside_the_picture_if_there_is_room(spare: Path, overwrite: bool) -> None:
    assert kept(Path("out/cat.v2.png"), overwrite=overwrite) == (
        "; its latent is kept in out/cat.v2.latent.safetensors"
    )
    assert Path("out/cat.v2.latent.safetensors").read_bytes() == LATENT
    assert os.listdir(spare) == []


def test_what_is_advised_can_be_pasted_into_a_shell() -> None:
    error = OutputError("no room")
    keep_latent(LATENT, Path("out/a cat.png"), error, overwrite=False, within=Path("out"))
    assert error.message == "no room; its latent is kept in out/a cat.latent.safetensors"
    assert error.hint == "'sdxl decode 'out/a cat.latent.safetensors'' makes the picture of it"


def test_an_older_one_is_replaced_where_that_was_asked_for_alone(spare: Path) -> None:
    older = Path("out/cat.latent.safetensors")
    older.parent.mkdir()
    older.write_bytes(b"older")
    kept(Path("out/cat.png"))
    assert older.read_bytes() == b"older"
    assert len(os.listdir(spare)) == 1
    kept(Path("out/cat.png"), overwrite=True)
    assert older.read_bytes() == LATENT


def test_among_temporary_files_for_nobody_else(spare: Path) -> None:
    Path("out").touch()  # no folder
    before = os.umask(0)
    try:
        told = kept(Path("out/cat.png"))
    finally:
        os.umask(before)
    (folder,) = spare.iterdir()
    assert told == f"; its latent is kept in {folder}/cat.latent.safetensors"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "cat.latent.safetensors").read_bytes() == LATENT


@pytest.mark.parametrize("known", [True, False])
def test_where_no_file_has_room_the_error_stays_as_it_is(
    spare: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Also where Python has not looked for its folder yet, which it does by writing into some."""
    if not known:
        monkeypatch.setattr(tempfile, "tempdir", None)
    with room_for(0):
        assert kept(Path("out/cat.png")) == ""
    assert [*os.listdir("out"), *os.listdir(spare)] == []


def test_a_picture_that_may_not_lie_outside_takes_its_latent_along(spare: Path) -> None:
    kept(Path("elsewhere/cat.png"))
    assert not list(Path("elsewhere").glob("*"))
    assert len(os.listdir(spare)) == 1
