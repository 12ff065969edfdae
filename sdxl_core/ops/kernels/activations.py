"""Activations for kernels that compute something else too, in few instructions and as right as 16 bit can show."""

import triton
import triton.language as tl

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""On the CPU, which knows no instructions of a GPU."""

_SILU = tl.constexpr("""{
    .reg .f32 e;
    mul.f32 e, $1, 0fBFB8AA3B;
    ex2.approx.ftz.f32 e, e;
    add.f32 e, e, 0f3F800000;
    rcp.approx.ftz.f32 e, e;
    mul.f32 $0, $1, e;
}""")
"""x / (1 + 2^(-x log2 e)); Triton's own exponential and quotient take twice as many, for subnormal numbers."""


@triton.jit
def silu(x):
    """SiLU, x times its sigmoid, to 2e-6 of itself from x = -8 on and to 1e-8 below."""
    if _INTERPRETED:
        return x / (1.0 + tl.exp(-x))
    else:
        return tl.inline_asm_elementwise(_SILU, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def gelu(x):
    """The exact GELU to 4e-6, and from |x| = 8 on to 5e-7 of x: multiplications do not wait for the one unit of roots.

    The normal distribution less a half is x times a polynomial of x^2, from 4.75 on what it is there; coefficients in
    s = x^2 / 11.28125 - 1 by weighted least squares (Lawson) of the error of the whole.
    """
    near = tl.minimum(tl.maximum(x, -4.75), 4.75)
    s = near * near * 0.0886426593 - 1.0
    p = -0.0037710467 + s * 0.0012802707
    p = -0.0071687975 + s * (0.0050159604 + s * p)
    p = -0.02164957 + s * (0.013405637 + s * p)
    p = -0.040568225 + s * (0.030402852 + s * p)
    p = -0.073667547 + s * (0.05323526 + s * p)
    p = 0.14874829 + s * p
    return x * (0.5 + near * p)
