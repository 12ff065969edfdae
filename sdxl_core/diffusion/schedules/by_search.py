"""Schedules that were found by optimizing for SDXL: short lists, stretched to other lengths in ln(sigma).

Every function is (table, n, *, options) -> n + 1 levels, descending. The lists are for SDXL's own table of levels;
`table` is not looked at.
"""

from collections.abc import Sequence

from sdxl_core.diffusion.schedules.gits import LONGEST, SHORTEST, searched_levels
from sdxl_core.diffusion.schedules.ramps import Levels, Table, between_logs, ramp

# Source of the lists: Sabour et al. 2024, arXiv:2404.14507, its list for SDXL at each program's precision; the longer
# ones are of Forge.
AYS = (
    14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
    0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582,
)  # fmt: skip
AYS_ROUNDED = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
AYS_32 = (
    14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457, 2.74396527, 2.29968659,
    1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443, 0.80290886, 0.69660121, 0.60436903,
    0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517, 0.26518925, 0.22326461, 0.17653877, 0.13959192,
    0.10587381, 0.05519369, 0.02877334, 0.015,
)  # fmt: skip
GITS_ROUNDED = (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029)


def align_your_steps(table: Table, n: int) -> Levels:
    """Align Your Steps: the 10-step list stretched to n + 1 levels, the last replaced by 0."""
    return (*_stretched(AYS, n + 1)[:-1], 0.0)


def align_your_steps_a1111(table: Table, n: int) -> Levels:
    """Align Your Steps rounded to 3 decimals, stretched to n levels before the 0: the lowest level is a step too."""
    return (*_stretched(AYS_ROUNDED, n), 0.0)


def align_your_steps_32(table: Table, n: int) -> Levels:
    """Align Your Steps from a list of 32 levels, stretched to n levels before the 0: ends lower, at 0.015."""
    return (*_stretched(AYS_32, n), 0.0)


def gits(table: Table, n: int, *, coefficient: float = 1.2) -> Levels:
    """GITS: a list of its own for 2 to 20 steps, above that stretched; a higher coefficient falls faster."""
    if n < SHORTEST:
        return (AYS[0], 0.0)
    levels = searched_levels(f"{coefficient:.2f}", min(n, LONGEST))
    return (*_stretched(levels, n + 1)[:-1], 0.0)


def gits_forge(table: Table, n: int) -> Levels:
    """GITS from a single list of 11 levels, stretched to n levels before the 0."""
    return (*_stretched(GITS_ROUNDED, n), 0.0)


def _stretched(levels: Sequence[float], count: int) -> list[float]:
    """`count` levels along the given ones, linear in ln(sigma) over their index; the highest alone for one."""
    if count == len(levels):
        return list(levels)
    return between_logs(levels, [(1 - share) * (len(levels) - 1) for share in ramp(count)])
