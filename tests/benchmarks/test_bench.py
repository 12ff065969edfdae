"""The harness of the benchmarks: its arithmetic, and that both paths of every benchmark do the same work."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cold_start
import first_stage
import flops
import guided_step
import loading
import numpy as np
import picture
import pytest
import run_all
import text_encoding
import torch
from bench.command import ROOT, options, run
from bench.figures import Facts, Load, Measured, Rates, floor_seconds, p90, relative_error, to_markdown, to_row
from bench.machine import Clock, Memory, measure_rates
from bench.models import Model
from bench.turns import Contender, Subject, measure
from support_tiny import tiny_config, write_preset, write_tiny_checkpoint

RATES = Rates({"float32": 1e9, "bfloat16": 4e9}, bytes_per_s=1e8)
FACTS = Facts({"network": "bfloat16", "first stage": "float32"}, {"network": 1000, "first stage": 500})
WORK = {"network": Load(8_000_000, calls=3), "first stage": Load(1_000_000)}


def measured(*seconds: float, **changes: Any) -> Measured:
    return Measured(**{"contender": "ours", "facts": FACTS, "seconds": seconds, **changes})


def test_the_floor_is_the_longer_of_arithmetic_and_reading_part_by_part() -> None:
    assert floor_seconds(WORK, FACTS, RATES) == pytest.approx(8e6 / 4e9 + 1e6 / 1e9)
    slow = replace(RATES, bytes_per_s=1e5)
    assert floor_seconds(WORK, FACTS, slow) == pytest.approx(3 * 1000 / 1e5 + 500 / 1e5)
    assert floor_seconds({"network": Load(0, calls=2)}, FACTS, RATES) == pytest.approx(2 * 1000 / 1e8)


def test_a_row_tells_medians_rates_and_ratios() -> None:
    row = to_row(measured(1.0, 4.0, 2.0, errors=(0.1, 0.3)), WORK, RATES, measured(6.0, 5.0))
    assert (row.runs, row.median_s, row.p90_s) == (3, 2.0, pytest.approx(3.6))
    assert row.effective_flop_per_s == pytest.approx(9e6 / 2)
    assert row.to_floor == pytest.approx(2 / row.floor_s)
    assert row.speedup == pytest.approx(5.5 / 2)
    assert (row.error, row.worst_error) == (pytest.approx(0.2), 0.3)
    assert row.precision == "network bfloat16, first stage float32"
    alone = to_row(measured(1.0), WORK, RATES, None)
    assert (alone.speedup, alone.error, alone.worst_error) == (None, None, None)


def test_what_could_not_be_run_is_told_with_its_reason() -> None:
    text = to_markdown([to_row(measured(0.002), WORK, RATES, None)], [Measured("theirs", failure="no compiler")])
    assert "| 2 ms |" in text
    assert text.endswith("theirs was not measured: no compiler")
    counted = to_markdown([to_row(measured(0.5), WORK, RATES, None)], pictures=4)
    assert counted.splitlines()[0].endswith("| pictures/s |")
    assert counted.splitlines()[2].endswith("| 8 |")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_nine_in_ten_are_not_above_p90() -> None:
    values = np.random.default_rng(0).random(1000)
    assert np.mean(values <= p90(list(values))) == pytest.approx(0.9)


def test_an_error_is_relative_and_sees_every_value() -> None:
    y = np.array([3.0, 4.0], dtype=np.float32)
    assert relative_error(y, y) == 0
    assert relative_error(y + np.array([0.0, 0.5]), y) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="cannot be compared"):
        relative_error(y[:1], y)


def test_a_clock_counts_its_block_alone() -> None:
    clock = Clock(torch.device("cpu"))
    with clock:
        sum(range(100_000))
    short = clock.seconds
    with clock:
        pass
    assert 0 < clock.seconds < short


def test_memory_is_what_was_touched_since() -> None:
    memory = Memory(torch.device("cpu"))
    memory.restart()
    held = torch.ones(2**24)
    del held
    assert 6e7 < memory.peak_bytes() < 2e8
    memory.restart()
    assert memory.peak_bytes() < 6e7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("bench")
    preset = write_preset(folder / "tiny.toml", tiny_config())
    return Model(str(preset), write_tiny_checkpoint(folder / "tiny.safetensors"), (32, 48), 12)


def subjects(model: Model) -> dict[str, Subject]:
    return {
        "step": guided_step.GuidedStep(model, "cpu", negative=False),
        "negative": guided_step.GuidedStep(model, "cpu", negative=True),
        "decode": first_stage.FirstStage(model, "cpu", "decode"),
        "encode": first_stage.FirstStage(model, "cpu", "encode"),
        "text": text_encoding.Text(model, "cpu"),
        "image": picture.Pictures(model, "cpu", "memory"),
        "picture": picture.Pictures(model, "cpu"),
        "throughput": picture.Pictures(model, "cpu", "memory", 2),
    }


@pytest.mark.parametrize("name", ["step", "negative", "decode", "encode", "text", "image", "picture", "throughput"])
@torch.inference_mode()
def test_both_paths_do_the_same_work(model: Model, name: str) -> None:
    subject = subjects(model)[name]
    results = []
    for path in ("ours", "ours plain", "diffusers"):
        clock = Clock(torch.device("cpu"))
        facts, run = subject.prepare(Contender(path, "float32"), clock)
        assert set(facts.precision.values()) == {"float32"}
        assert set(facts.weights_bytes) == set(subject.work())
        results.append((facts, run(3), run(4)))
        assert clock.seconds > 0
    (ours, *our_results), (plain, *plain_results), (theirs, *their_results) = results
    # Their tower of CLIP runs its last layer too, whose output nobody reads; a picture's bytes may differ by one.
    assert ours.weights_bytes.get("network") == theirs.weights_bytes.get("network")
    assert ours == plain
    tolerance = 1e-5 if name in ("step", "encode", "text") else 3e-3
    for results_of_ours in (our_results, plain_results):
        assert all(relative_error(a, b) <= tolerance for a, b in zip(results_of_ours, their_results, strict=True))
    assert relative_error(our_results[0], our_results[1]) > 0.05


def test_rates_are_of_every_precision() -> None:
    rates = measure_rates(torch.device("cpu"), ("float32",), 0)
    assert math.isfinite(rates.flop_per_s["float32"])
    assert rates.bytes_per_s > 0


def test_every_table_has_its_place_in_the_page() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    args = options(None).parse_args(["--device", "cpu"])
    args.full = None
    names = [benchmark.name for benchmark, _ in run_all.benchmarks(args)]
    assert len(set(names)) == len(run_all.EVERYWHERE) + 3  # the step, the first stage and the picture have two
    full = [f"{kind}-sdxl-base-1.0-cpu" for kind in ("step", "negative")]
    places = [*names, *(name.replace("micro-cpu", "sdxl-base-1.0-cuda") for name in names), *full]
    assert [name for name in places if f"<!-- {name}: begin -->\n" not in page] == []


def test_a_table_of_arithmetic_sums_up_its_parts() -> None:
    rows = {name: work for name, _, work in flops.table("micro", {"recipe.steps": 3}, refiner=True)}
    names = list(rows)
    parts = names[: names.index("a picture")]
    assert sum(rows[name].total for name in parts) == rows["a picture"].total
    assert {name.split()[0] for name in parts} == {"text", "network", "decode"}
    assert len([name for name in parts if "micro-refiner" in name]) == 2
    assert rows["one guided step"] == rows["one row of the network"] * 2


@pytest.mark.slow
def test_contenders_run_in_turn_in_their_own_processes(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", model.preset, "--model", str(model.file), "--size", "48x32", "--steps", "12"]
    arguments += ["--device", "cpu", "--dtype", "float32", "--runs", "2", "--warmup", "1", "--json"]
    for script in (guided_step, loading, cold_start):
        args = options(None).parse_args(arguments)
        for benchmark in script.benchmarks(args):
            run(benchmark, args)
            found = json.loads(capsys.readouterr().out)
            ours, plain, theirs = found["rows"]
            assert [row["contender"] for row in (ours, plain, theirs)] == ["ours", "ours plain", "diffusers"]
            assert ours["runs"] == theirs["runs"] == 2
            assert ours["peak_bytes"] > 0
            assert ours["error"] is None if script is loading else ours["error"] < 3e-3


@pytest.mark.slow
def test_a_contender_that_fails_is_told_and_the_others_go_on() -> None:
    broken = Contender("broken", "float32")
    result = measure(Counting("cpu"), [broken, Contender("counting", "float32")], runs=1, warmup=0, peer="counting")
    assert [row.contender for row in result.rows] == ["counting"]
    assert result.rows[0].speedup == 1
    assert result.failures[0].failure.startswith("ValueError: it has no legs")


@dataclass(frozen=True, slots=True)
class Counting:
    """Counts to a thousand, unless it is broken."""

    device: str

    def work(self) -> dict[str, Load]:
        return {"network": Load(1000)}

    def prepare(self, contender: Contender, clock: Clock) -> tuple[Facts, Any]:
        if contender.name == "broken":
            raise ValueError("it has no legs")

        def run(seed: int) -> Any:
            with clock:
                return np.full(3, sum(range(1000 + seed % 2)))

        return Facts({"network": "float32"}, {"network": 4}), run
