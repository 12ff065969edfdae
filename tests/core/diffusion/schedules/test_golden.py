"""Every schedule against numbers that other programs give for SDXL, to the digits that were printed."""

import pytest

from sdxl_core.config import DenoiserConfig, DiscretizationConfig
from sdxl_core.diffusion.discretization import sigma_to_timestep, trained_levels
from sdxl_core.diffusion.schedules import resolve_sigmas


def levels(name: str, n: int, **options: object) -> tuple[float, ...]:
    return resolve_sigmas(DiscretizationConfig(name=name, **options), n, DenoiserConfig())


def timesteps(name: str, n: int) -> list[int]:
    table = trained_levels(DenoiserConfig())
    return [sigma_to_timestep(sigma, table) for sigma in levels(name, n)[:-1]]


TEN = {
    "legacy_ddpm": "14.6146  8.3028  5.0878 3.3211 2.2765 1.6129 1.1606 0.8299 0.5693 0.3417",
    "simple": "14.6146  8.3028  5.0878 3.3211 2.2765 1.6129 1.1606 0.8299 0.5693 0.3417",
    "normal": "14.6146  7.8399  4.6092 2.9183 1.9502 1.3449 0.9324 0.6250 0.3687 0.0292",
    "sgm_uniform": "14.6146  8.3072  5.0924 3.3251 2.2797 1.6156 1.1629 0.8319 0.5712 0.3437",
    "ddim_uniform": " 8.3907  5.1344  3.3478 2.2929 1.6237 1.1682 0.8357 0.5741 0.3462 0.0413",
    "karras": "14.6146  9.1029  5.4784 3.1686 1.7494 0.9141 0.4469 0.2014 0.0819 0.0292",
    "exponential": "14.6146  7.3249  3.6712 1.8400 0.9222 0.4622 0.2317 0.1161 0.0582 0.0292",
    "polyexponential": "14.6146  7.3249  3.6712 1.8400 0.9222 0.4622 0.2317 0.1161 0.0582 0.0292",
    "kl_optimal": "14.6146  4.2324  2.3937 1.5971 1.1330 0.8152 0.5729 0.3725 0.1953 0.0292",
    "beta": "14.6146 11.5428  7.3718 4.3728 2.6152 1.6183 1.0273 0.6549 0.3955 0.1991",
    "align_your_steps": "14.6146  6.3184  3.7682 2.1811 1.3405 0.8621 0.5551 0.3799 0.2332 0.1114",
    "align_your_steps_a1111": "14.6150  5.9634  3.3390 1.8550 1.1023 0.6750 0.4311 0.2606 0.1225 0.0290",
    "gits": "14.6146  5.8552  2.8448 1.6705 1.0890 0.7481 0.5012 0.3210 0.1989 0.0982",
}
OTHER = {
    ("trailing", 4): "14.6146 4.0817 1.6129 .6932",
    ("sgm_uniform", 4): "14.6146 4.0861 1.6156 .6951",
    ("align_your_steps", 10): (
        "14.6146412293 6.3184485287 3.7681790315 2.1811480769 1.3405244945 0.8620721141 0.5550693289 0.3798540708 "
        "0.2332364134 0.1114188177"
    ),
    ("align_your_steps_a1111", 11): "14.615 6.315 3.771 2.181 1.342 0.862 0.555 0.380 0.234 0.113 0.029",
    ("align_your_steps", 20): (
        "14.6146 9.6095 6.3184 4.8795 3.7682 2.8669 2.1811 1.7099 1.3405 1.0750 .8621 .6917 .5551 .4592 .3799 .2977 "
        ".2332 .1612 .1114 .0570"
    ),
    ("gits", 2): "14.61464119 .803307",
    ("gits", 3): "14.61464119 1.56271636 .52423614",
    ("gits", 4): "14.61464119 2.36326075 .92192322 .36617002",
    ("gits", 5): "14.61464119 2.84484982 1.24153244 .59516323 .25053367",
    ("gits", 6): "14.61464119 5.85520077 2.05039096 .95350921 .45573691 .17026083",
    ("gits", 7): "14.61464119 5.85520077 2.45070267 1.24153244 .64427125 .29807833 .09824532",
    ("gits", 8): "14.61464119 5.85520077 2.45070267 1.36964464 .803307 .45573691 .25053367 .09824532",
    ("gits", 10): (
        "14.61464119 5.85520077 2.84484982 1.67050016 1.08895338 .74807048 .50118381 .32104823 .19894916 .09824532"
    ),
    ("gits", 12): (
        "14.61464119 5.85520077 3.07277966 1.98035145 1.36964464 .95350921 .69515091 .50118381 .36617002 .25053367 "
        ".17026083 .09824532"
    ),
    ("gits", 15): (
        "14.61464119 7.49001646 4.65472794 3.07277966 2.12350607 1.51179266 1.08895338 .83188516 .64427125 .50118381 "
        ".38853383 .29807833 .22545385 .17026083 .09824532"
    ),
    ("gits", 20): (
        "14.61464119 7.49001646 4.65472794 3.07277966 2.19988537 1.61558151 1.24153244 .95350921 .74807048 .59516323 "
        ".50118381 .41087446 .34370604 .29807833 .25053367 .22545385 .19894916 .17026083 .13792117 .09824532"
    ),
    ("align_your_steps_32", 32): (
        "14.615 11.1491618 8.50522127 6.48827151 5.43707402 4.60398619 3.89854704 3.27407457 2.74396527 2.29968659 "
        "1.95448514 1.67108715 1.42878152 1.23181009 1.06789649 .92579443 .80290886 .69660121 .60436903 .52852552 "
        ".46773344 .41393379 .36258186 .31008517 .26518925 .22326461 .17653877 .13959192 .10587381 .05519369 .02877334 "
        ".015"
    ),
    ("gits_forge", 11): "14.615 4.734 2.567 1.529 .987 .652 .418 .268 .179 .127 .029",
}


def agrees(sigma: float, printed: str, slack: float = 1e-7) -> bool:
    """Whether sigma rounds to the printed digits; float32 has some seven of them."""
    digits = len(printed.partition(".")[2])
    return abs(sigma - float(printed)) <= 0.5001 * 10**-digits + slack * sigma


@pytest.mark.parametrize(
    ("name", "n", "printed"),
    [*((name, 10, text) for name, text in TEN.items()), *((*key, t) for key, t in OTHER.items())],
)
def test_the_levels_are_the_published_ones(name: str, n: int, printed: str) -> None:
    sigmas = levels(name, n)
    numbers = printed.split()
    assert len(sigmas) == n + 1 == len(numbers) + 1
    assert [(sigma, number) for sigma, number in zip(sigmas, numbers, strict=False) if not agrees(sigma, number)] == []
    assert sigmas[-1] == 0


def test_a_share_of_the_timesteps_lies_at_the_published_level() -> None:
    shares = {4: "5.0924", 7: "2.7391", 10: "1.6156", 14: ".8319", 15: ".6951", 16: ".5712", 17: ".4557", 18: ".3437"}
    sigmas = levels("sgm_uniform", 20)  # level i lies where i / 20 of the trained timesteps are above it
    assert [(share, sigmas[share]) for share, printed in shares.items() if not agrees(sigmas[share], printed)] == []


def test_karras_with_rho_three_is_the_published_list() -> None:
    printed = "14.6146 10.7566 7.6454 5.2006 3.3420 1.9891 1.0618 0.4796 0.1621 0.0292"
    sigmas = levels("karras", 10, rho=3.0)
    assert all(agrees(sigma, number) for sigma, number in zip(sigmas, printed.split(), strict=False))


def test_the_edm_levels_of_another_range_are_the_published_ones() -> None:
    printed = (
        "80 57.586 40.786 28.375 19.353 12.910 8.4009 5.3152 3.2568 1.9233 1.0882 .5853 .2964 .1395 .0599 .0229 .0075 "
        ".002"
    )
    sigmas = levels("edm", 18, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    # As the original does, the seventh power is taken of float32 numbers, each good to some 4e-7 then.
    assert all(agrees(sigma, number, 4e-6) for sigma, number in zip(sigmas, printed.split(), strict=False))


def test_the_timesteps_are_the_published_ones() -> None:
    thirty = (
        "999 965 932 899 865 832 799 765 732 699 666 632 599 566 532 499 466 432 399 366 333 299 266 233 199 166 133"
    )
    assert timesteps("legacy_ddpm", 30) == [*map(int, thirty.split()), 99, 66, 33]
    assert timesteps("ddim_uniform", 10) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert timesteps("trailing", 4) == [999, 749, 499, 249]
    assert timesteps("trailing", 8) == [999, 874, 749, 624, 499, 374, 249, 124]
    assert timesteps("turbo", 4) == [999, 899, 799, 699]
    assert timesteps("turbo_forge", 4) == [999, 749, 499, 249]
    assert timesteps("lcm", 4) == [999, 759, 499, 259]


@pytest.mark.parametrize(
    ("coefficient", "n", "printed"),
    [
        (0.8, 2, "14.61464119 7.49001646"),
        (0.8, 16, "14.61464119 13.76078796 12.96784878 12.2308979 11.54541874 10.90732002 10.31284904 9.24142551 "
         "8.75849152 8.30717278 7.49001646 6.14220476 4.86714602 3.1956799 1.98035145 0.86115354"),
        (1.0, 4, "14.61464119 6.77309084 2.36326075 0.803307"),
        (1.15, 19, "14.61464119 7.49001646 4.86714602 3.1956799 2.45070267 1.84880662 1.41535246 1.12534678 0.89115214 "
         "0.72133851 0.59516323 0.50118381 0.41087446 0.34370604 0.27464288 0.22545385 0.17026083 0.13792117 "
         "0.09824532"),
        (1.4, 3, "14.61464119 0.95350921 0.34370604"),
    ],
)  # fmt: skip
def test_gits_has_every_published_coefficient(coefficient: float, n: int, printed: str) -> None:
    sigmas = levels("gits", n, coefficient=coefficient)
    assert sigmas == pytest.approx([*map(float, printed.split()), 0], rel=1e-7)


def test_a_whole_coefficient_of_gits_needs_no_point() -> None:
    assert levels("gits", 4, coefficient=1) == levels("gits", 4, coefficient=1.0)
