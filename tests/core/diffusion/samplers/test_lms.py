import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from support_closed_form import Gaussian, karras_levels, steps

from sdxl_core.diffusion.samplers.lms import adams_weights


@given(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4), st.floats(0.0, 1.0))
def test_weights_integrate_polynomials_exactly(gaps: list[float], end: float) -> None:
    nodes = [end + sum(gaps[: i + 1]) for i in range(len(gaps))]
    weights = adams_weights(nodes, end)
    for power in range(len(nodes)):
        exact = (end ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
        integral = sum(w * node**power for w, node in zip(weights, nodes, strict=True))
        scale = sum(abs(w) * node**power for w, node in zip(weights, nodes, strict=True))
        assert math.isclose(integral, exact, rel_tol=1e-10, abs_tol=1e-10 * scale)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_weights_are_those_of_numerical_quadrature(count: int) -> None:
    nodes, end = karras_levels(20)[10 : 10 + 4][::-1][:count], karras_levels(20)[14]
    for j, weight in enumerate(adams_weights(nodes, end)):

        def basis(tau: float, j: int = j) -> float:
            others = [node for k, node in enumerate(nodes) if k != j]
            return math.prod((tau - other) / (nodes[j] - other) for other in others)

        assert weight == pytest.approx(quad(basis, nodes[0], end, epsabs=1e-14, epsrel=1e-13)[0], rel=1e-10)


def test_even_levels_give_the_classical_adams_bashforth_numbers() -> None:
    weights = adams_weights([3.0, 4.0, 5.0, 6.0], 2.0)
    assert weights == pytest.approx([-55 / 24, 59 / 24, -37 / 24, 9 / 24], rel=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_fewer_slopes_give_a_lower_order(order: int) -> None:
    gaussian, errors = Gaussian(), []
    for n in (256, 512):
        sigmas = karras_levels(n, 1000.0)
        last = steps("lms", gaussian, 10.0, sigmas, order=order)[-1].x
        errors.append(abs(last / gaussian.solution(10.0, sigmas[0], sigmas[-1]) - 1))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)
