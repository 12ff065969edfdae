import torch
from support_conditioning import randomize

from sdxl_core.conditioning.conditioner import Conditioner
from sdxl_core.conditioning.memory import PROMPTS_KEPT, TextMemory
from sdxl_core.conditioning.request import ConditionRequest
from sdxl_core.config import ConditionerConfig, OpenClipTextConfig


def request(prompt: str, prompt_2: str | None = None, size: int = 64) -> ConditionRequest:
    return ConditionRequest(prompt, prompt_2, (size, size), (0, 0), (size, size), 6.0)


def test_a_prompt_is_encoded_once_whatever_the_sizes_until_many_others_came() -> None:
    tower = OpenClipTextConfig(kind="open_clip", width=16, layers=1, heads=2)
    conditioner = Conditioner(ConditionerConfig(embedders=(tower,)))
    randomize(conditioner)
    runs: list[torch.Tensor] = []
    conditioner.towers[0].register_forward_hook(lambda *call: runs.append(call[1][0]))
    memory = TextMemory()
    with torch.inference_mode():
        (first,) = memory.encode(conditioner, request("a cat"))
        assert memory.encode(conditioner, request("a cat", size=128))[0] is first
        assert memory.encode(conditioner, request("a cat", "a dog"))[0] is not first
        assert len(runs) == 2
        assert torch.equal(first.hidden, conditioner.encode_text([request("a cat")])[0].hidden)
        before = len(runs)
        for number in range(PROMPTS_KEPT - 1):
            memory.encode(conditioner, request(f"{number}"))
            memory.encode(conditioner, request("a cat"))  # what is asked for again is not forgotten
        assert len(runs) == before + PROMPTS_KEPT - 1
        memory.encode(conditioner, request("a cat", "a dog"))
        assert len(runs) == before + PROMPTS_KEPT
