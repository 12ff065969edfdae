import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support_training import write_image_folder

from sdxl_core.errors import UsageError
from sdxl_core.training.data import BucketedDraw, Picture, load_crop, nearest_bucket, read_image_folder

BUCKETS = ((64, 64), (48, 80), (80, 48))


def test_reads_sizes_from_the_files_and_from_the_metadata(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, size=(40, 64))
    assert {p.size for p in read_image_folder(root)} == {(40, 64)}
    entry = {"file_name": "red-0.png", "text": "red", "width": 640, "height": 400}
    (root / "metadata.jsonl").write_text(json.dumps(entry) + "\n\n")
    assert [(p.text, p.size) for p in read_image_folder(root)] == [("red", (400, 640))]


def test_a_score_is_read_where_there_is_one(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path)
    lines = [{"file_name": "red-0.png", "text": "red", "aesthetic_score": 2}, {"file_name": "red-1.png", "text": "red"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [p.aesthetic_score for p in read_image_folder(root)] == [2.0, 6.0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: needs a JSON object with file_name and text"),
        ('{"file_name": "red-0.png"}', "line 1: needs a JSON object with file_name and text"),
        ('"red-0.png"', "line 1: needs a JSON object with file_name and text"),
        ('{"file_name": "gone.png", "text": "a"}', "line 1: cannot read .*gone.png"),
        ('{"file_name": "red-0.png", "text": "a", "aesthetic_score": "good"}', "line 1: needs a JSON object"),
        (
            '{"file_name": "red-0.png", "text": "a", "aesthetic_score": 11}',
            "line 1: aesthetic_score 11.0 is not between",
        ),
        ('{"file_name": "red-0.png", "text": "a", "width": 0, "height": 8}', "line 1: a picture of 0x8 has no pixels"),
        ('{"file_name": "red-0.png", "text": "a", "width": Infinity, "height": 8}', "line 1: cannot read .*red-0.png"),
        ('{"file_name": "cut.png", "text": "a"}', "line 1: cannot read .*cut.png: "),
        ('{"file_name": "red-0.png", "text": "\udcff"}', r"metadata\.jsonl is not UTF-8 text"),
        ("", "lists no pictures"),
    ],
)
def test_bad_metadata_is_named(tmp_path: Path, line: str, said: str) -> None:
    root = write_image_folder(tmp_path)
    (root / "cut.png").write_bytes((root / "red-0.png").read_bytes()[:30])
    (root / "metadata.jsonl").write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(UsageError, match=said):
        read_image_folder(root)


def test_a_folder_without_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no metadata\.jsonl") as error:
        read_image_folder(tmp_path)
    assert "file_name" in (error.value.hint or "")


def test_the_bucket_is_nearest_in_aspect_not_in_size() -> None:
    assert nearest_bucket((1000, 1000), BUCKETS) == (64, 64)
    assert nearest_bucket((500, 1000), BUCKETS) == (48, 80)
    assert nearest_bucket((1000, 700), BUCKETS) == (80, 48)
    # 1 : 1.29 lies on the logarithmic middle between 1 and 5/3.
    assert nearest_bucket((100, 128), BUCKETS) == (64, 64)
    assert nearest_bucket((100, 131), BUCKETS) == (48, 80)


def test_the_crop_is_where_it_says(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (64, 200, 3))
    Image.fromarray(ramp.copy()).save(tmp_path / "ramp.png")
    picture = Picture(tmp_path / "ramp.png", "a ramp", (64, 200))
    corners = set()
    for seed in range(20):
        crop = load_crop(picture, (64, 64), torch.Generator().manual_seed(seed))
        top, left = crop.crop_coords_top_left
        assert top == 0
        assert crop.original_size == (64, 200)
        expected = (left + torch.arange(64)) / 127.5 - 1
        assert torch.equal(crop.image, expected.expand(3, 64, 64))
        corners.add(left)
    assert len(corners) > 10


@pytest.mark.parametrize("size", [(17, 33), (33, 17), (300, 200), (64, 64), (63, 65)])
def test_every_size_covers_its_bucket(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size[::-1], (255, 255, 255)).save(tmp_path / "white.png")
    for bucket in BUCKETS:
        crop = load_crop(Picture(tmp_path / "white.png", "", size), bucket, torch.Generator().manual_seed(0))
        assert crop.image.shape == (3, *bucket)
        assert torch.equal(crop.image, torch.ones(3, *bucket))  # no black border anywhere


def test_a_batch_is_of_one_bucket_and_the_draw_depends_on_the_generator_alone() -> None:
    sizes = [(100, 100)] * 30 + [(50, 100)] * 10 + [(100, 50)] * 3
    draw = BucketedDraw(sizes, BUCKETS, batch_size=5)
    seen = dict.fromkeys(BUCKETS, 0)
    for seed in range(300):
        bucket, indexes = draw(torch.Generator().manual_seed(seed))
        again_bucket, again = draw(torch.Generator().manual_seed(seed))
        assert (bucket, indexes.tolist()) == (again_bucket, again.tolist())
        assert {nearest_bucket(sizes[i], BUCKETS) for i in indexes.tolist()} == {bucket}
        assert len(indexes) == 5
        if bucket != (80, 48):  # only three pictures there: they repeat
            assert len(set(indexes.tolist())) == 5
        seen[bucket] += 1
    # 30 : 10 : 3 of 43, binomial; five standard deviations of the largest share are 0.13.
    assert seen[(64, 64)] / 300 == pytest.approx(30 / 43, abs=0.13)
