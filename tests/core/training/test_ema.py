import torch

from sdxl_core.training.ema import Ema


def test_the_average_follows_its_formula_with_warm_up() -> None:
    weight = torch.zeros(3)
    ema = Ema({"w": weight}, decay=0.5)
    expected = 0.0
    for n in range(1, 8):
        weight.fill_(float(n))
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
        ema.update({"w": weight})
        assert torch.allclose(ema.shadow["w"], torch.full((3,), expected), atol=1e-6)


def test_the_average_is_float32_and_not_the_weight_itself() -> None:
    weight = torch.ones(2, dtype=torch.bfloat16)
    ema = Ema({"w": weight}, decay=0.9999)
    weight.zero_()
    assert ema.shadow["w"].dtype is torch.float32
    assert ema.shadow["w"].tolist() == [1, 1]
