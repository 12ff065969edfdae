import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from support_hub import COMMIT, Hub, running
from support_reporter import Recorder

from sdxl_core.checkpoints.pull import pull_file
from sdxl_core.config import ModelFile
from sdxl_core.errors import CheckpointError

REPO = "someone/a-model"
NAME = "model.safetensors"
CONTENT = random.Random(4).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WANTED = ModelFile(name=NAME, repo=REPO, bytes=len(CONTENT), sha256=SHA256)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub(files={f"{REPO}/{NAME}": CONTENT}, etags={f"{REPO}/{NAME}": SHA256})) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models"


def refused(folder: Path, hub: Hub, file: ModelFile = WANTED, retries: int = 0) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        pull_file(file, folder, endpoint=hub.endpoint, retries=retries)
    assert not (folder / file.name).exists()
    return caught.value


def test_fetches_verifies_and_says_how_far_it_is(hub: Hub, folder: Path) -> None:
    recorder = Recorder()
    path = pull_file(WANTED, folder, endpoint=hub.endpoint, reporter=recorder)
    assert path == folder / NAME
    assert path.read_bytes() == CONTENT
    assert recorder.tasks == [
        [f"fetching {NAME}", len(CONTENT), "B", len(CONTENT), True],
        [f"hashing {NAME}.part", len(CONTENT), "B", len(CONTENT), True],
    ]
    assert os.listdir(folder) == [NAME]
    assert hub.requests[-1] == ("GET", f"/{REPO}/resolve/{COMMIT}/{NAME}", None)


def test_what_is_there_and_right_is_not_fetched_again(hub: Hub, folder: Path, tmp_path: Path) -> None:
    pull_file(WANTED, folder, endpoint=hub.endpoint, hash_cache=tmp_path / "cache")
    hub.requests.clear()
    recorder = Recorder()
    pull_file(WANTED, folder, endpoint=hub.endpoint, hash_cache=tmp_path / "cache", reporter=recorder)
    assert recorder.tasks == [], "its hash is remembered"
    pull_file(WANTED, folder, endpoint=hub.endpoint, reporter=recorder)
    assert [task[0] for task in recorder.tasks] == [f"hashing {NAME}"]
    assert hub.requests == []


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub, folder: Path) -> None:
    hub.break_after = [1_000_000, 500_000]
    path = pull_file(WANTED, folder, endpoint=hub.endpoint, retries=2)
    assert path.read_bytes() == CONTENT
    assert hub.gets() == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_call_goes_on_where_an_earlier_one_broke_off(hub: Hub, folder: Path) -> None:
    hub.break_after = [1_000_000, 0]
    error = refused(folder, hub)
    assert "goes on where it broke off" in (error.hint or "")
    assert (folder / f"{NAME}.part").stat().st_size == 1_000_000
    hub.requests.clear()
    recorder = Recorder()
    path = pull_file(WANTED, folder, endpoint=hub.endpoint, reporter=recorder)
    assert path.read_bytes() == CONTENT
    assert hub.gets() == ["bytes=1000000-"]
    assert recorder.tasks[0][3] == len(CONTENT), "what was there already counts"


def test_a_server_without_ranges_sends_it_all_again(hub: Hub, folder: Path) -> None:
    hub.break_after, hub.ranges = [1_000_000], False
    assert pull_file(WANTED, folder, endpoint=hub.endpoint, retries=1).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [1_000_000, len(CONTENT), len(CONTENT) + 5])
def test_a_part_of_something_else_is_refused_and_removed(hub: Hub, folder: Path, size: int) -> None:
    folder.mkdir(parents=True)
    (folder / f"{NAME}.part").write_bytes(b"x" * size)
    if size <= len(CONTENT):
        error = refused(folder, hub)
        assert "its sha256 is" in error.message
        assert "removed" in (error.hint or "")
    assert pull_file(WANTED, folder, endpoint=hub.endpoint).read_bytes() == CONTENT


def test_other_bytes_than_promised_are_refused_and_removed(hub: Hub, folder: Path) -> None:
    hub.files[f"{REPO}/{NAME}"] = CONTENT[:-1] + b"x"
    error = refused(folder, hub)
    assert hashlib.sha256(CONTENT[:-1] + b"x").hexdigest() in error.message
    assert os.listdir(folder) == []


def test_a_file_that_the_hub_itself_gives_another_hash_is_not_even_fetched(hub: Hub, folder: Path) -> None:
    hub.etags[f"{REPO}/{NAME}"] = "0" * 64
    assert "publishes another file (sha256" in refused(folder, hub).message
    hub.etags[f"{REPO}/{NAME}"] = SHA256
    other = WANTED.model_copy(update={"bytes": 7})
    assert "publishes another file (bytes 3000000 instead of 7)" in refused(folder, hub, other).message
    assert hub.gets() == []


def test_without_a_known_hash_the_hubs_own_is_taken(hub: Hub, folder: Path) -> None:
    unknown = ModelFile(name=NAME, repo=REPO)
    hub.files[f"{REPO}/{NAME}"] = CONTENT[::-1]
    assert "its sha256 is" in refused(folder, hub, unknown).message
    hub.etags.clear()
    assert pull_file(unknown, folder, endpoint=hub.endpoint).read_bytes() == CONTENT[::-1]


def test_the_token_goes_to_the_hub_and_not_where_it_redirects(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.redirects, hub.break_after = True, [1_000_000]
    assert pull_file(WANTED, folder, endpoint=hub.endpoint, retries=1).read_bytes() == CONTENT
    assert [wanted for wanted in hub.gets() if wanted] == ["bytes=1000000-"] * 2
    assert set(hub.tokens) == {("127.0.0.1", "Bearer hf_canary"), ("localhost", None)}


def test_another_file_of_that_name_is_never_touched(hub: Hub, folder: Path) -> None:
    folder.mkdir(parents=True)
    for content, reason in ((b"mine", "has 4 bytes"), (CONTENT[::-1], "is not the published file")):
        (folder / NAME).write_bytes(content)
        with pytest.raises(CheckpointError, match=reason) as caught:
            pull_file(WANTED, folder, endpoint=hub.endpoint)
        assert caught.value.hint == "move it away, then pull again"
        assert (folder / NAME).read_bytes() == content
    assert hub.requests == []


def test_a_full_disk_is_said_before_any_byte(hub: Hub, folder: Path) -> None:
    hub.sizes = False
    error = refused(folder, hub, WANTED.model_copy(update={"bytes": 10**16}))
    assert "10000000000000000 bytes are needed and" in error.message
    assert "make room" in (error.hint or "")
    assert hub.gets() == []


def test_a_folder_that_cannot_be_made_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, reason in (tmp_path / "file", "File exists"), (tmp_path / "file" / "below", "Not a directory"):
        error = refused(folder, hub)
        assert error.message == f"cannot write {folder}: {reason}"
        assert error.hint == "choose another models folder"
    assert hub.requests == []


def test_what_the_hub_refuses_is_said_plainly(hub: Hub, folder: Path) -> None:
    other = WANTED.model_copy(update={"name": "other.safetensors"})
    assert f"the hub has no other.safetensors in {REPO}" in refused(folder, hub, other).message
    assert "the hub has no x in no/where" in refused(folder, hub, ModelFile(name="x", repo="no/where")).message
    hub.gated.add(REPO)
    error = refused(folder, hub)
    assert "terms" in error.message
    assert "hf auth login" in (error.hint or "")


def test_no_hub_at_all(hub: Hub, folder: Path) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    assert f"cannot fetch {NAME}" in refused(folder, hub).message


def test_a_file_without_a_published_place_and_a_name_that_is_a_path(hub: Hub, folder: Path) -> None:
    assert "no published place" in refused(folder, hub, ModelFile(name=NAME)).message
    for name in ("../evil.safetensors", "a/b.safetensors", ".hidden", "a\nb", ""):
        with pytest.raises(CheckpointError, match="not a plain file name"):
            pull_file(ModelFile(name=name, repo=REPO), folder, endpoint=hub.endpoint)
    assert hub.requests == []


def test_two_processes_do_not_write_one_part(hub: Hub, folder: Path) -> None:
    folder.mkdir(parents=True)
    with FileLock(folder / f".{NAME}.part.lock"):
        assert "another process is fetching it" in refused(folder, hub).message
    assert hub.gets() == []


KILLED = """
import os, sys
from pathlib import Path
from sdxl_core.checkpoints.pull import pull_file
from sdxl_core.config import ModelFile

class Dying:
    done = 0.0
    def start(self, *_): pass
    def finish(self): pass
    def advance(self, amount):
        self.done += amount
        if self.done >= 2_000_000:
            os.kill(os.getpid(), 9)

pull_file(ModelFile(name=sys.argv[2], repo=sys.argv[3]), Path(sys.argv[1]), reporter=Dying())
"""


def test_a_killed_fetch_behind_hf_endpoint_is_gone_on_with(hub: Hub, folder: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-c", KILLED, str(folder), NAME, REPO]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -9
    assert sorted(os.listdir(folder)) == [f".{NAME}.part.lock", f"{NAME}.part"]
    have = (folder / f"{NAME}.part").stat().st_size
    assert 1_000_000 <= have < len(CONTENT)
    hub.requests.clear()
    assert pull_file(WANTED, folder, endpoint=hub.endpoint).read_bytes() == CONTENT
    assert hub.gets() == [f"bytes={have}-"]
    assert os.listdir(folder) == [NAME]
