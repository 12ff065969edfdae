"""Weights of the multistep methods, and what each method is where it meets another."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from support_closed_form import Gaussian, TwoPeaks, karras_levels, legacy_ddpm, log_levels, silence, steps

from sdxl_core.diffusion.noise import PictureNoise
from sdxl_core.diffusion.samplers.deis import log_weights
from sdxl_core.diffusion.samplers.lms import adams_weights
from sdxl_core.diffusion.samplers.pndm import ADAMS_BASHFORTH
from sdxl_core.diffusion.samplers.quadrature import weights

EVEN = [10.0 - i / 8 for i in range(73)]  # down to 1


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4, unique_by=lambda v: round(v, 1)), st.data())
def test_weights_have_the_moments_asked_for(nodes: list[float], data: st.DataObject) -> None:
    moments = data.draw(st.lists(st.floats(-3, 3), min_size=len(nodes), max_size=len(nodes)))
    found = weights(nodes, moments)
    size = max(1.0, *(abs(w) for w in found)) * 2**4
    for k, moment in enumerate(moments):
        assert math.isclose(sum(w * v**k for w, v in zip(found, nodes, strict=True)), moment, abs_tol=1e-9 * size)


@pytest.mark.parametrize("levels", [karras_levels, log_levels])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_deis_integrates_polynomials_of_the_logarithm(count: int, levels) -> None:  # type: ignore[no-untyped-def]
    walked = levels(20)
    nodes, end = walked[10 : 10 + count][::-1], walked[10 + count]
    found = log_weights(nodes, end)
    for power in range(count):
        exact = quad(lambda s, p=power: math.log(s) ** p, nodes[0], end, epsabs=1e-14, epsrel=1e-13)[0]
        assert sum(w * math.log(node) ** power for w, node in zip(found, nodes, strict=True)) == pytest.approx(
            exact, rel=1e-9, abs=1e-12
        )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_constant_weights_are_those_of_even_levels(order: int) -> None:
    nodes = [1.0 + i for i in range(order)]
    assert [-w for w in adams_weights(nodes, 0.0)] == pytest.approx(ADAMS_BASHFORTH[order - 1], rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_on_even_levels_all_adams_methods_are_one(order: int) -> None:
    ends = [steps(name, Gaussian(), 10.0, EVEN, silence, order=order)[-1].x for name in ("ipndm", "ipndm_v", "lms")]
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)
    assert ends[2] == pytest.approx(ends[1], rel=1e-12)


@pytest.mark.parametrize("name", ["lms", "ipndm", "ipndm_v", "deis"])
def test_with_one_slope_it_is_euler(name: str) -> None:
    sigmas = karras_levels(10)
    ours = steps(name, Gaussian(), 10.0, sigmas, order=1)[-1].x
    assert ours == pytest.approx(steps("euler", Gaussian(), 10.0, sigmas)[-1].x, rel=1e-12)


@pytest.mark.parametrize(("name", "options"), [("gradient_estimation", {"ge_gamma": 1.0}), ("ddim", {})])
def test_other_names_of_euler(name: str, options: dict[str, float]) -> None:
    sigmas = legacy_ddpm(15)
    x = PictureNoise([0], (4, 6, 5)).start(sigmas[0])
    ours = steps(name, TwoPeaks(), x, sigmas, silence, **options)[-1].x
    theirs = steps("euler", TwoPeaks(), x, sigmas, silence)[-1].x
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


def test_the_published_weights_of_ipndm_v_are_not_those_of_the_levels() -> None:
    """Why ours differ: at even levels the fourth-order weight of the newest slope is 57/24 there, not 55/24."""
    h = h_1 = h_2 = h_3 = 1.0
    third = (1 - h / (3 * (h + h_1)) * (h * (h + h_1)) / (h_1 * (h_1 + h_2))) / 2
    fourth = (1 - h / (3 * (h + h_1))) / 2 + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))
    fourth *= h * (h + h_1) * (h + h_1 + h_2) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
    published = 1 + h / h_1 / 2 + third + fourth
    assert published == pytest.approx(57 / 24)
    assert -adams_weights([1.0, 2.0, 3.0, 4.0], 0.0)[0] == pytest.approx(55 / 24)


def test_the_two_kinds_of_uni_pc_differ_where_one_difference_is_known_alone() -> None:
    sigmas = karras_levels(12)
    ends = [steps("uni_pc", Gaussian(), 10.0, sigmas, order=2, solver_type=kind)[-1].x for kind in ("bh1", "bh2")]
    assert ends[0] != pytest.approx(ends[1], rel=1e-6)
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
