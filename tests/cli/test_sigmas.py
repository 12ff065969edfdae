"""`sdxl sigmas`: the same levels as a table, JSON, CSV, a list for gen and a figure."""

import io
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support_cli import Sdxl
from support_closed_form import legacy_ddpm

from sdxl_core.compat import PROGRAMS
from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import (
    alpha_bars,
    edm,
    last_levels,
    linear_betas,
    sigma_to_fractional_timestep,
    trained_levels,
)
from sdxl_core.diffusion.schedules import SCHEDULES, resolve_sigmas
from sdxl_core.plan import build_plan
from sdxl_core.presets import load_preset

ROOT = Path(__file__).parents[2]


def levels(name: str, n: int, **options: float) -> list[float]:
    return list(resolve_sigmas(DiscretizationConfig(name=name, **options), n, DenoiserConfig()))


@pytest.mark.parametrize("kind", ["ddpm", "edm"])
def test_the_forms_agree_with_the_core(sdxl: Sdxl, kind: str) -> None:
    expected = list(legacy_ddpm(12) if kind == "ddpm" else edm(12))
    line = ["sigmas", "--kind", kind, "--steps", 12]
    document = json.loads(sdxl(*line, "--json").out)
    assert [level["sigma"] for level in document["levels"]] == expected
    assert [level["index"] for level in document["levels"]] == list(range(13))
    assert document["levels"][0]["timestep"] == 999
    assert document["levels"][-1]["timestep"] is None
    rows = [row.split(",") for row in sdxl(*line, "--csv").out.splitlines()]
    assert rows[0] == ["index", "sigma", "timestep", "alpha_bar", "log_snr", "log_snr_step", "snr_db"]
    assert [float(np.float32(row[1])) for row in rows[1:]] == expected
    table = [row.split() for row in sdxl(*line).out.splitlines()]
    assert [row[1] for row in table[1:]] == [row[1] for row in rows[1:]]
    assert [float(np.float32(s)) for s in sdxl(*line, "--emit").out.strip().split(",")] == expected


def test_every_number_of_a_level_says_the_same(sdxl: Sdxl) -> None:
    rows = json.loads(sdxl("sigmas", "--kind", "karras", "--steps", 9, "--json").out)["levels"]
    for row, following in pairwise(rows):
        share = row["alpha_bar"]
        assert math.sqrt((1 - share) / share) == pytest.approx(row["sigma"], rel=1e-9)
        assert math.exp(row["log_snr"]) == pytest.approx(share / (1 - share), rel=1e-9)
        assert 10 ** (row["snr_db"] / 10) == pytest.approx(share / (1 - share), rel=1e-9)
        if following["sigma"] > 0:
            assert row["log_snr_step"] == pytest.approx(following["log_snr"] - row["log_snr"])
    assert (rows[-1]["alpha_bar"], rows[-1]["log_snr"], rows[-2]["log_snr_step"]) == (1, None, None)


def test_options_bend_the_levels(sdxl: Sdxl) -> None:
    line = ["sigmas", "--kind", "edm", "--steps", 5, "--rho", 7, "--sigma-min", 0.1, "--sigma-max", 80, "--json"]
    document = json.loads(sdxl(*line).out)
    assert document["schedule"] == "edm:rho=7,sigma_min=0.1,sigma_max=80"
    assert [level["sigma"] for level in document["levels"]] == list(edm(5, 0.1, 80.0, 7.0))
    short = ["sigmas", "--schedule", "edm:rho=7,sigma_min=0.1,sigma_max=80", "--steps", 5, "--json"]
    assert json.loads(sdxl(*short).out)["levels"] == document["levels"]


@pytest.mark.parametrize(
    ("prediction", "first"),
    [("eps", 999), ("v_ztsnr", 999), ("edm", math.log(80) / 4), ("edm_v", math.log(120) / 4), ("flow", 999.9)],
)
def test_a_prediction_decides_the_levels_and_what_the_network_is_told(
    sdxl: Sdxl, prediction: str, first: float
) -> None:
    document = json.loads(sdxl("sigmas", "--kind", "karras", "--prediction", prediction, "--json").out)
    assert document["prediction"] == prediction
    assert document["levels"][0]["timestep"] == pytest.approx(first, rel=1e-4)


def test_a_shift_moves_every_level_of_a_flow(sdxl: Sdxl) -> None:
    line = ["sigmas", "--kind", "normal", "--prediction", "flow", "--steps", 4, "--json"]
    plain, shifted = (json.loads(sdxl(*line, *more).out)["levels"] for more in ([], ["--shift", 2.5]))
    assert [row["sigma"] for row in shifted[:-1]] == pytest.approx([2.5 * row["sigma"] for row in plain[:-1]], rel=1e-6)


def test_a_preset_brings_its_schedule_and_steps(sdxl: Sdxl) -> None:
    document = json.loads(sdxl("sigmas", "--preset", "sdxl-fast", "--json").out)
    assert [row["sigma"] for row in document["levels"]] == list(edm(20, 0.0292, 14.6146, 7.0))
    other = json.loads(sdxl("sigmas", "--preset", "sdxl-fast", "--kind", "beta", "--steps", 5, "--json").out)
    assert [row["sigma"] for row in other["levels"]] == levels("beta", 5)
    bent = json.loads(sdxl("sigmas", "--preset", "sdxl-fast", "--rho", 5, "--json").out)
    assert [row["sigma"] for row in bent["levels"]] == list(edm(20, 0.0292, 14.6146, 5.0))


def test_a_list_of_ones_own_is_shown(sdxl: Sdxl) -> None:
    document = json.loads(sdxl("sigmas", "--sigmas", "8,2,0.5,0", "--json").out)
    assert [row["sigma"] for row in document["levels"]] == [8, 2, 0.5, 0]
    assert document["steps"] == 3


def test_schedules_stand_side_by_side(sdxl: Sdxl) -> None:
    line = ["sigmas", "--compare", "karras:rho=5,sigma_min=0.1,beta,turbo", "--steps", 4]
    lists = json.loads(sdxl(*line, "--json").out)["lists"]
    assert [each["schedule"] for each in lists] == ["karras:rho=5,sigma_min=0.1", "beta", "turbo"]
    assert [row["sigma"] for row in lists[1]["levels"]] == levels("beta", 4)
    head, *rows = [row.split() for row in sdxl(*line).out.splitlines()]
    assert head == ["index", "karras:rho=5,sigma_min=0.1", "beta", "turbo"]
    assert [float(np.float32(row[2])) for row in rows] == levels("beta", 4)
    csv = sdxl(*line, "--csv").out.splitlines()
    assert csv[0] == 'index,"karras:rho=5,sigma_min=0.1",beta,turbo'
    assert [row.split(",")[2] for row in csv[1:]] == [row[2] for row in rows]
    plot = sdxl(*line, "--plot").out
    assert plot.count("━━") == 3
    assert "┤" in plot


def test_a_strength_takes_the_last_levels_and_says_which(sdxl: Sdxl) -> None:
    result = sdxl("sigmas", "--strength", 0.3, "--json")
    assert "strength 0.3 of 30 steps: 9 steps, sigma 0.8299 to 0" in result.err
    assert [row["sigma"] for row in json.loads(result.out)["levels"]] == list(last_levels(legacy_ddpm(30), 0.3))
    assert "1 step, sigma" in sdxl("sigmas", "--strength", 0.001).err


def test_a_refiner_takes_over_at_the_same_level(sdxl: Sdxl) -> None:
    result = sdxl("sigmas", "--refine", "share@0.8", "--json")
    base, refiner = json.loads(result.out)["lists"]
    assert (base["model"], refiner["model"], refiner["first"]) == ("base", "refiner", 24)
    assert base["levels"][-1]["sigma"] == refiner["levels"][0]["sigma"]
    joined = [row["sigma"] for row in [*base["levels"], *refiner["levels"][1:]]]
    assert joined == list(legacy_ddpm(30))
    assert "base 24 steps, refiner 6; the switch is at sigma 0.5693" in result.err
    rows = [row.split() for row in sdxl("sigmas", "--refine", "steps@40/50").out.splitlines()]
    assert [row[-1] for row in rows[1:]].count("base") == 41
    assert sdxl("sigmas", "--refine", "sdedit@0.15", "--csv").out.count("refiner") == 5


def test_betas_are_those_of_training(sdxl: Sdxl) -> None:
    rows = json.loads(sdxl("sigmas", "--betas", "--json").out)["timesteps"]
    np.testing.assert_array_equal([row["beta"] for row in rows], linear_betas())
    np.testing.assert_array_equal([row["alpha_bar"] for row in rows], alpha_bars(linear_betas()))
    np.testing.assert_allclose([row["sigma"] for row in rows], trained_levels(DenoiserConfig()), rtol=1e-6)
    assert len(sdxl("sigmas", "--betas", "--csv").out.splitlines()) == 1001
    table = sdxl("sigmas", "--betas", "--steps", 3).out.splitlines()
    assert [row.split()[0] for row in table] == ["timestep", "0", "500", "999"]
    zero = json.loads(sdxl("sigmas", "--betas", "--prediction", "v_ztsnr", "--json").out)["timesteps"]
    product = np.cumprod([1 - row["beta"] for row in zero])
    np.testing.assert_allclose(product, [row["alpha_bar"] for row in zero], rtol=1e-9)
    assert zero[-1]["sigma"] == pytest.approx(4518.76, rel=1e-5)


def test_the_list_has_a_line_and_bars_for_every_schedule(sdxl: Sdxl) -> None:
    lines = sdxl("sigmas", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == list(SCHEDULES)
    assert all(line.split()[1].startswith("█") for line in lines[:-1])
    document = json.loads(sdxl("sigmas", "list", "--json").out)
    assert [row["name"] for row in document] == list(SCHEDULES)
    assert document[list(SCHEDULES).index("karras")]["options"] == {"sigma_min": None, "sigma_max": None, "rho": 7.0}


def test_the_plot_is_for_terminals_unless_asked(sdxl: Sdxl) -> None:
    assert "┤" not in sdxl("sigmas").out
    assert "┤" in sdxl("sigmas", "--plot").out
    assert "┤" in sdxl("sigmas", "--betas", "--plot").out


def test_a_level_beyond_training_is_said(sdxl: Sdxl) -> None:
    assert "warning: sigma 152.2 is above 14.61" in sdxl("sigmas", "--kind", "vp").err
    assert sdxl("sigmas", "--kind", "align_your_steps_a1111").err == ""


@pytest.mark.parametrize(
    "flags",
    [
        ["--steps", "20"],
        ["--steps", "1"],
        ["--steps", "1000"],
        ["--compare", "karras,beta,legacy_ddpm,kl_optimal_a1111"],
        ["--refine", "share@0.8"],
        ["--refine", "sdedit@0.1"],
        ["--prediction", "edm", "--kind", "karras"],
        ["--sigmas", "3,2.9999,0"],
        ["--betas"],
    ],
)
def test_any_list_can_be_drawn_into_both_kinds_of_file(sdxl: Sdxl, flags: list[str]) -> None:
    result = sdxl("sigmas", *flags, "--png", "levels.png", "--svg", "levels.svg")
    assert result.code == 0, result.err
    with Image.open("levels.png") as image:
        assert image.size == (1400, 800)
        pixels = np.asarray(image, dtype=int)
    assert (pixels[:, :, 2] - pixels[:, :, 0] > 100).sum() > 20  # the first curve is blue
    root = ElementTree.parse("levels.svg").getroot()
    assert (root.get("width"), root.get("height")) == ("1400", "800")
    marks = list(root)
    texts = [mark.text for mark in marks if mark.tag.endswith("text")]
    assert "timestep" in texts if "--betas" in flags else {"sigma", "log-SNR", "step"} <= set(texts)
    assert [mark for mark in marks if "#1971c2" in (mark.get("stroke"), mark.get("fill"))]
    assert "nan" not in Path("levels.svg").read_text()


def test_a_figure_shows_falling_levels_over_a_logarithmic_axis(sdxl: Sdxl) -> None:
    sdxl("sigmas", "--kind", "exponential", "--steps", 9, "--svg", "levels.svg")
    dots = [mark for mark in ElementTree.parse("levels.svg").getroot() if mark.tag.endswith("circle")]
    heights = np.array([float(dot.get("cy", "nan")) for dot in dots])
    assert len(heights) == 9
    np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=0.02)
    assert np.diff(heights)[0] > 0


def test_the_level_of_as_much_noise_as_signal_has_no_sign(sdxl: Sdxl) -> None:
    assert "-0" not in sdxl("sigmas", "--sigmas", "1,0").out


def test_a_figure_replaces_no_file_unasked(sdxl: Sdxl) -> None:
    Path("levels.png").write_bytes(b"mine")
    refused = sdxl("sigmas", "--png", "levels.png")
    assert refused.code == 1
    assert "exists already" in refused.err
    assert Path("levels.png").read_bytes() == b"mine"
    assert sdxl("sigmas", "--png", "levels.png", "--overwrite").code == 0
    assert Image.open(io.BytesIO(Path("levels.png").read_bytes())).format == "PNG"


@pytest.mark.parametrize("sampler", ["euler", "dpm_2", "uni_pc"])
@pytest.mark.parametrize("kind", ["beta", "karras", "leading"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_makes_the_levels_that_gen_walks_for_it(sdxl: Sdxl, program: str, kind: str, sampler: str) -> None:
    flags = {"compat": program, "discretization": {"name": kind}, "sampler": {"name": sampler}, "steps": 7}
    plan = build_plan(load_preset("sdxl-base-1.0", overrides={f"recipe.{key}": v for key, v in flags.items()}), "a cat")
    line = ["sigmas", "--kind", kind, "--compat", program, "--sampler", sampler, "--steps", "7", "--json"]
    result = sdxl(*line)
    document = json.loads(result.out)
    assert [level["sigma"] for level in document["levels"]] == list(plan.sigmas())
    assert (document["compat"], document["sampler"], document["kind"]) == (program, sampler, plan.discretization.name)
    assert f"as {program} with {sampler}: " in result.err


@pytest.mark.parametrize(
    ("program", "strength", "sigmas"),
    [
        ("comfy", "0.5", levels("karras", 20)[-11:]),  # all of them, of a schedule that is twice as long
        ("a1111", "1", levels("karras", 10)[-10:]),  # never from the first
        (
            "diffusers",
            "0.29",
            levels("karras", 10, sigma_min=levels("leading", 10)[-2], sigma_max=levels("leading", 10)[0])[-3:],
        ),
        ("sgm", "0.5", levels("karras", 10)[-5:]),  # int(11 x 0.5) levels
    ],
)
def test_a_program_cuts_by_its_own_rule(sdxl: Sdxl, program: str, strength: str, sigmas: list[float]) -> None:
    line = ["sigmas", "--kind", "karras", "--steps", "10", "--compat", program, "--strength", strength, "--json"]
    assert [level["sigma"] for level in json.loads(sdxl(*line).out)["levels"]] == sigmas


def test_a_program_says_what_the_network_is_told(sdxl: Sdxl) -> None:
    table = trained_levels(DenoiserConfig()).astype(float)
    below, above = table[998:]
    sigma = (math.sqrt(below * above) + (below + above) / 2) / 2  # nearer to the lower one, but not in its logarithm

    def told(*flags: str) -> float:
        document = json.loads(sdxl("sigmas", "--sigmas", f"{sigma},0", "--json", *flags).out)
        assert document["levels"][1]["timestep"] is None
        return float(document["levels"][0]["timestep"])

    assert told() == told("--compat", "sgm") == 998
    assert told("--compat", "comfy") == 999
    assert told("--compat", "a1111") == pytest.approx(sigma_to_fractional_timestep(sigma, table), abs=1e-3)
    assert 998.4 < told("--compat", "a1111") < 998.6


def test_a_preset_of_another_program_is_walked_as_gen_walks_it(sdxl: Sdxl) -> None:
    Path("mine.toml").write_text(
        'base = "sdxl-base-1.0"\n[recipe]\nsteps = 6\ncompat = "a1111"\n'
        '[recipe.sampler]\nname = "dpm_2"\n[recipe.discretization]\nname = "beta"\n',
        encoding="utf-8",
    )
    plan = build_plan(load_preset("./mine.toml"), "a cat")
    document = json.loads(sdxl("sigmas", "--preset", "./mine.toml", "--json").out)
    assert [level["sigma"] for level in document["levels"]] == list(plan.sigmas())
    assert document["schedule"] == "beta_a1111"


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--steps", "0"], "between 1 and 1000"),
        (["--steps", "1001"], "between 1 and 1000"),
        (["--kind", "edm", "--sigma-min", "5", "--sigma-max", "1"], "must be positive, finite and rise"),
        (["--kind", "edm", "--rho", "0"], "rho of schedule 'edm' must be a positive number"),
        (["--kind", "edm", "--rho", "nan"], "rho of schedule 'edm' must be a positive number"),
        (["--rho", "3"], "schedule 'legacy_ddpm' has no option 'rho'"),
        (["--kind", "karas"], "did you mean karras"),
        (["--kind", ""], "unknown schedule ''"),
        (["--compare", "karras,bata"], "--compare: unknown schedule 'bata'; did you mean beta?"),
        (["--compare", "karras,,beta"], "unknown schedule ''"),
        (["--compare", ",".join(["karras"] * 9)], "at most 8 schedules, not 9"),
        (["--compare", "karras", "--rho", "3"], "--rho belongs to --kind"),
        (["--compare", "karras", "--kind", "beta"], "--kind and --compare exclude each other"),
        (["--compare", "karras", "--emit"], "--compare and --emit exclude each other"),
        (["--sigmas", "5,6,0"], "must decrease"),
        (["--sigmas", "1e39,1,0"], "noise level 0 is inf"),
        (["--sigmas", "1.00000000001,1,0"], "must decrease"),
        (["--kind", "explicit"], "no levels of its own"),
        (["--sigmas", "5,1,0", "--steps", "3"], "--sigmas takes 2 steps, --steps says 3"),
        (["--strength", "0"], "strength must be above 0 and at most 1"),
        (["--strength", "1.5"], "strength must be above 0 and at most 1"),
        (["--strength", "nan"], "strength must be above 0 and at most 1"),
        (["--strength", "0.5", "--refine", "share@0.8"], "--strength and --refine exclude each other"),
        (["--refine", "share@1.5"], "must be between 0 and 1"),
        (["--refine", "share@0.999", "--steps", "3"], "outside the schedule"),
        (["--refine", "share@step=30"], "outside the schedule"),
        (["--refine", "steps@40/50", "--steps", "30"], "counts 50 steps, the schedule has 30"),
        (["--refine", "half"], "unknown way to hand over"),
        (["--prediction", "epsilon"], "unknown prediction 'epsilon'"),
        (["--shift", "3"], "only flows have"),
        *((["--prediction", "flow", "--shift", shift], "a shift must be a positive") for shift in ("0", "-1", "nan")),
        (["--betas", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["--betas", "--prediction", "flow"], "trained without a beta schedule"),
        (["--betas", "--kind", "karras"], "--betas and --kind exclude each other"),
        (["--preset", "sdxl-bas"], "sdxl-bas"),
        (["--compat", "comfyui"], "unknown program 'comfyui'; did you mean comfy?"),
        (["--compat", "comfy", "--sampler", "eular"], "unknown sampler 'eular'; did you mean euler?"),
        (["--sampler", "dpm_2"], "--sampler belongs to --compat"),
        (["--compat", "comfy", "--steps", "600", "--strength", "0.5"], "the end of a schedule of 1200 steps"),
        (["--compat", "a1111", "--betas"], "--betas and --compat exclude each other"),
        (["--json", "--csv"], "--json and --csv exclude each other"),
        (["--png", "levels.pdf"], "does not end in .png"),
        (["--svg", "levels.png"], "does not end in .svg"),
        (["lst"], "lst"),
        (["--kind", "beta", "list"], "'sdxl sigmas list' takes no flags before its name"),
    ],
)
def test_levels_that_cannot_be(sdxl: Sdxl, flags: list[str], word: str) -> None:
    result = sdxl("sigmas", *flags)
    assert (result.code, result.out) == (2, "")
    assert word in result.err
    assert "Traceback" not in result.err
    assert list(Path.cwd().iterdir()) == []


def test_a_table_needs_neither_torch_nor_pillow_and_is_instant() -> None:
    code = (
        "import sys, time\nfrom sdxl_cli.boundary import run\nassert run(['sigmas', '--compare', 'beta,gits']) == 0\n"
        "print(time.process_time(), *(name for name in ('torch', 'PIL', 'scipy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    spent, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == []
    assert float(spent) < 0.8  # 0.3 on an idle machine
