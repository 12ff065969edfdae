"""Every attention backend against the formula, and in its own words where it refuses."""

import sys

import pytest
import torch
from support_networks import randn, relative_error
from torch import Tensor

from sdxl_core.errors import DeviceError
from sdxl_core.ops import attention
from sdxl_core.ops.attention import BACKENDS, head_by_head, resolve_attention, sdpa, words_first, written_out

CPU = torch.device("cpu")
ON_CPU = ["sdpa", "flash", "math"]


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights @ v / weights.sum(-1, keepdim=True)


def draw(heads: int, head_dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Queries from 33 places and keys and values from 7, strided as the networks have them."""
    shapes = [(2, n, heads, head_dim) for n in (33, 7, 7)]
    return [randn(*shape, seed=i).to(device, dtype).transpose(1, 2) for i, shape in enumerate(shapes)]


def test_cpu_backends_are_the_expected_ones() -> None:
    assert [name for name, backend in BACKENDS.items() if backend.why_not(CPU, torch.float32, 64) is None] == ON_CPU


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize(("heads", "head_dim"), [(5, 64), (3, 10), (1, 512)])
@pytest.mark.parametrize("name", ON_CPU)
def test_equals_the_formula(name: str, heads: int, head_dim: int, dtype: torch.dtype, bound: float) -> None:
    q, k, v = draw(heads, head_dim, dtype)
    out = resolve_attention(name, CPU, dtype, head_dim).fn(q, k, v)
    assert out.dtype == dtype
    assert relative_error(out, formula(q, k, v)) <= bound


@pytest.mark.parametrize("name", ON_CPU)
def test_gradients_equal_the_formula(name: str) -> None:
    tensors = [t.requires_grad_() for t in draw(2, 16, torch.float64)]
    ours = torch.autograd.grad(BACKENDS[name].fn(*tensors).square().sum(), tensors)
    theirs = torch.autograd.grad(formula(*tensors).square().sum(), tensors)
    assert all(relative_error(a, b) <= 1e-12 for a, b in zip(ours, theirs, strict=True))


def test_written_out_equals_the_formula_forwards_and_backwards() -> None:
    tensors = [t.requires_grad_() for t in draw(3, 10, torch.float64)]
    out = written_out(*tensors)
    assert relative_error(out.detach(), formula(*tensors).detach()) <= 1e-12
    ours = torch.autograd.grad(out.square().sum(), tensors)
    theirs = torch.autograd.grad(formula(*tensors).square().sum(), tensors)
    assert all(relative_error(a, b) <= 1e-12 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("heads", "n", "m"), [(5, 200, 200), (7, 130, 77), (2, 300, 300)], ids=["to itself", "to words", "few heads"]
)
def test_head_by_head_errs_by_the_rounding_of_its_weights_alone(
    heads: int, n: int, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(2, places, heads, 64) for places in (n, m, m)]
    # Scores of deviation 9, whose own rounding to 16 bit would be seen.
    q, k, v = ((3 * randn(*shape, seed=i)).bfloat16().transpose(1, 2) for i, shape in enumerate(shapes))
    attend = resolve_attention("auto", CPU, torch.bfloat16, 64)
    assert attend.name == "head_by_head"
    exact, plain = formula(q, k, v), relative_error(sdpa(q, k, v), formula(q, k, v))
    for size in (2**22, 2**19, 1):
        monkeypatch.setattr(attention, "_SCORES_BYTES", size)
        out = attend.fn(q, k, v)
        assert out.shape == q.shape
        assert relative_error(out, exact) < 1.6 * plain


@pytest.mark.parametrize(("head_dim", "last"), [(16, False), (64, True), (8, True), (1, True)])
def test_head_by_head_takes_heads_of_any_width_in_any_order(head_dim: int, last: bool) -> None:
    shape = (2, 5, 150, head_dim) if last else (2, 5, head_dim, 150)
    q, k, v = ((randn(*shape, seed=i) * factor).bfloat16() for i, factor in enumerate((3, 3, 1)))
    q, k, v = (part if last else part.transpose(2, 3) for part in (q, k, v))
    assert relative_error(head_by_head(q, k, v), formula(q, k, v)) <= 5e-3


def test_head_by_head_leaves_what_is_small_or_large_or_trained_to_the_plain_kernel() -> None:
    for heads, n in ((2, 16), (1, 1500)):
        q, k, v = (randn(1, heads, n, 8, seed=i).bfloat16() for i in range(3))
        assert torch.equal(head_by_head(q, k, v), sdpa(q, k, v))
    q, k, v = (randn(1, 2, 300, 8, seed=i).bfloat16().requires_grad_() for i in range(3))
    assert head_by_head(q, k, v).requires_grad


@pytest.mark.parametrize("shift", [-1000.0, -200.0, -60.0, 60.0, 200.0, 1000.0])
@pytest.mark.parametrize("rows", [slice(None), slice(7, 8)])
def test_head_by_head_takes_scores_of_any_size(shift: float, rows: slice) -> None:
    """Also where all of a row are so large or small that their powers cannot be told."""
    q, k, v = (randn(1, 4, 256, 16, seed=i).bfloat16() for i in range(3))
    q[..., 0], k[..., 0] = 0, 4
    q[:, :, rows, 0] = shift
    assert relative_error(head_by_head(q, k, v), formula(q, k, v)) <= 5e-3


@pytest.mark.parametrize("m", [33, 47, 48])
def test_head_by_head_gives_no_weight_to_keys_that_are_not_there(m: int) -> None:
    """Where all scores are alike, so that one of nothing would count as much as the others."""
    k, v = (randn(1, 8, m, 16, seed=i).bfloat16() for i in range(2))
    out = head_by_head(k.new_zeros(1, 8, 512, 16), k, v)
    assert relative_error(out, v.double().mean(2, keepdim=True).expand_as(out)) <= 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_head_by_head_writes_into_nothing_that_it_is_given(dtype: torch.dtype) -> None:
    given = [randn(1, 2, 300, 8, seed=i).to(dtype) for i in range(3)]
    before = [part.clone() for part in given]
    assert relative_error(head_by_head(*given), formula(*before)) <= 1e-2
    assert all(torch.equal(part, kept) for part, kept in zip(given, before, strict=True))


@pytest.mark.parametrize("head_dim", [16, 64, 512])
def test_auto_picks_something_that_runs(head_dim: int) -> None:
    q, k, v = draw(1, head_dim, torch.float32)
    assert relative_error(resolve_attention("auto", CPU, torch.float32, head_dim).fn(q, k, v), formula(q, k, v)) <= 1e-6


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_cuda_backend_says_that_it_needs_cuda(name: str) -> None:
    with pytest.raises(
        DeviceError, match=f"'{name}' cannot be used: it needs a CUDA device, this one is cpu"
    ) as caught:
        resolve_attention(name, CPU, torch.float16, 64)
    assert caught.value.hint == "leave the choice to auto"


def test_cuda_device_without_cuda_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert BACKENDS["flash"].why_not(torch.device("cuda"), torch.float16, 64) == "PyTorch finds no CUDA device"


def test_xformers_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    reason = BACKENDS["xformers"].why_not(CPU, torch.float16, 64)
    assert reason is not None
    assert reason.startswith("xformers cannot be imported (ModuleNotFoundError: ")


def test_dtype_that_no_kernel_takes_is_found_by_trial() -> None:
    reason = BACKENDS["flash"].why_not(CPU, torch.int64, 64)
    assert reason is not None
    assert reason.startswith("a trial run failed (")


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(DeviceError, match="unknown attention backend 'flesh'") as caught:
        resolve_attention("flesh", CPU, torch.float32, 64)
    assert caught.value.hint == f"one of: auto, {', '.join(BACKENDS)}"


@pytest.mark.parametrize("name", ["words_first", "cudnn_first", "flash_first"])
def test_an_order_of_kernels_falls_back_to_one_that_can_and_is_the_process_no_longer(name: str) -> None:
    before = torch._C._get_sdp_priority_order()
    q, k, v = draw(5, 64, torch.float64)
    assert relative_error(BACKENDS[name].fn(q, k, v), formula(q, k, v)) <= 1e-14
    assert torch._C._get_sdp_priority_order() == before


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "chosen"),
    [
        ((9, 0), torch.float16, 64, "words_first"),
        ((9, 0), torch.bfloat16, 64, "words_first"),
        ((9, 0), torch.float16, 32, "cudnn_first"),
        ((9, 0), torch.float16, 20, "flash_first"),
        ((9, 0), torch.float16, 512, "sdpa"),
        ((9, 0), torch.float32, 64, "sdpa"),
        ((8, 6), torch.float16, 64, "flash_first"),
        ((12, 0), torch.float16, 64, "flash_first"),
        ((7, 5), torch.float16, 64, "sdpa"),
    ],
)
def test_auto_goes_by_the_gpu(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_attention("auto", torch.device("cuda"), dtype, head_dim).name == chosen


def test_words_first_leaves_to_the_others_what_its_kernel_does_not_run_with() -> None:
    q, k, v = (randn(1, 2, n, 64, seed=i).half() for i, n in enumerate((100, 77, 77)))
    assert relative_error(words_first(q, k, v), formula(q, k, v)) <= 2e-3
    assert words_first(q.requires_grad_(), k, v).requires_grad


def test_words_first_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    why_not = BACKENDS["words_first"].why_not
    for capability, head_dim, reason in [
        ((9, 0), 64, None),
        ((9, 0), 32, "its heads are 64 wide, this one is 32"),
        ((8, 9), 64, "it is for compute capability 9.0, where it was measured"),
        ((7, 5), 64, "it needs compute capability 8.0, this GPU has 7.5"),
    ]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert why_not(torch.device("cuda"), torch.float16, head_dim) == reason


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [16, 64, 512])
@pytest.mark.parametrize("name", BACKENDS)
def test_on_cuda_equals_the_formula_or_refuses(name: str, head_dim: int, dtype: torch.dtype) -> None:
    backend = BACKENDS[name]
    if reason := backend.why_not(torch.device("cuda"), dtype, head_dim):
        assert name not in ("sdpa", "math")
        assert "trial run" not in reason
        pytest.skip(reason)
    q, k, v = draw(2, head_dim, dtype, "cuda")
    assert relative_error(backend.fn(q, k, v), formula(q, k, v)) <= (1e-2 if dtype == torch.bfloat16 else 5e-3)
