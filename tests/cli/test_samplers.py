"""`sdxl samplers`."""

import json
import math

import pytest
from support_cli import Sdxl

from sdxl_cli.options import parse_choice
from sdxl_core.config import SamplerConfig
from sdxl_core.diffusion.samplers import SAMPLERS, check_options


def test_the_list_has_a_line_for_every_sampler(sdxl: Sdxl) -> None:
    result = sdxl("samplers", "list")
    heads, *lines = result.out.splitlines()
    assert heads.split()[:2] == ["name", "order"]
    rows = {line.split()[0]: line.split() for line in lines}
    assert list(rows) == list(SAMPLERS)
    assert rows["heun"][1:4] == ["2", "2", "no"]
    assert rows["dpm_adaptive"][1:4] == ["3", "varies", "no"]
    assert rows["lcm"][1:4] == ["-", "1", "yes"]
    assert rows["lms"][4] == "order=4"
    assert rows["euler"][4] == "s_churn=0,s_tmin=0,s_tmax,s_noise=1"
    assert rows["sa_solver"][4].endswith("simple_order_2=false")
    assert all(row.source in line for row, line in zip(SAMPLERS.values(), lines, strict=True))


def test_as_json_it_says_what_every_option_may_be(sdxl: Sdxl) -> None:
    entries = {entry["name"]: entry for entry in json.loads(sdxl("samplers", "list", "--json").out)}
    assert list(entries) == list(SAMPLERS)
    assert entries["uni_pc"]["options"] == {
        "order": {"default": 3, "allowed": "1, 2 or 3"},
        "solver_type": {"default": "bh1", "allowed": "bh1 or bh2"},
    }
    assert entries["euler"]["options"]["s_tmax"] == {"default": None, "allowed": "a number of at least 0"}
    assert (entries["dpm_adaptive"]["calls_per_step"], entries["euler_cfg_pp"]["cfg_pp"]) == (None, True)
    assert all(entry["description"] for entry in entries.values())


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_it_lists_can_be_asked_for(sdxl: Sdxl, name: str) -> None:
    (entry,) = [e for e in json.loads(sdxl("samplers", "list", "--json").out) if e["name"] == name]
    options = {key: option["default"] for key, option in entry["options"].items()}
    check_options(name, SamplerConfig(name=name, **options).options())


def test_every_default_of_the_table_can_be_typed(sdxl: Sdxl) -> None:
    for line in sdxl("samplers", "list").out.splitlines()[1:]:
        name, *_, options = line.split()[:5]
        pairs = [pair for pair in options.split(",") if "=" in pair]
        _, typed = parse_choice(f"{name}:{','.join(pairs)}" if pairs else name, "--sampler")
        check_options(name, typed)
        assert typed == {key: value for key, value in SAMPLERS[name].options.items() if value != math.inf}
