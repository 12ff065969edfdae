"""The beta distribution's quantile, for the schedules that are named after it."""

import math

_TINY = 1e-300
_ITERATIONS = 500


def beta_quantile(q: float, alpha: float, beta: float) -> float:
    """The x in [0, 1] below which a share q of the beta distribution lies; error below 1e-12.

    Newton's method inside a bracket: near 0 and 1 the density is infinite or 0 and a step may lead anywhere, then the
    bracket is halved instead.

    Args:
        q: in [0, 1].
        alpha: above 0.
        beta: above 0.
    """
    if q <= 0 or q >= 1:
        return min(max(q, 0.0), 1.0)
    if q > beta_share(0.5, alpha, beta):
        return 1 - _lower_quantile(1 - q, beta, alpha)
    return _lower_quantile(q, alpha, beta)


def _lower_quantile(q: float, alpha: float, beta: float) -> float:
    """The quantile where it is at most 1/2."""
    low, high = 0.0, 0.5
    constant = _log_constant(alpha, beta)
    # The distribution's power law at 0.
    x = min(math.exp((math.log(q) + math.log(alpha) - constant) / alpha), 0.25) or _TINY
    for _ in range(_ITERATIONS):
        error = beta_share(x, alpha, beta) - q
        low, high = (low, x) if error > 0 else (x, high)
        density = math.exp(constant + (alpha - 1) * math.log(x) + (beta - 1) * math.log1p(-x))
        following = x - error / density if density > 0 else -1.0
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= 2e-16 * x or following in (0.0, x):
            return following
        x = following
    return x


def beta_share(x: float, alpha: float, beta: float) -> float:
    """The share of the beta distribution below x: the regularized incomplete beta function I_x(alpha, beta).

    Args:
        x: in [0, 1].
        alpha: above 0.
        beta: above 0.

    Source: DLMF, section 8.17(v), the continued fraction 8.17.22.
    """
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (alpha + 1) / (alpha + beta + 2):  # where the fraction of the mirrored function converges faster
        return 1 - beta_share(1 - x, beta, alpha)
    power = math.exp(_log_constant(alpha, beta) + alpha * math.log(x) + beta * math.log1p(-x))
    return power / alpha / _fraction(x, alpha, beta)


def _log_constant(alpha: float, beta: float) -> float:
    """ln(1 / B(alpha, beta))."""
    return math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)), from the front by Lentz's method."""
    value = upper = 1.0
    lower = 0.0
    for n in range(1, _ITERATIONS):
        m = n // 2
        if n % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        lower = 1 / ((1 + d * lower) or _TINY)
        upper = (1 + d / upper) or _TINY
        change = upper * lower
        value *= change
        if abs(change - 1) < 1e-16:
            break
    return value
