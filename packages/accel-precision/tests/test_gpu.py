"""On a CUDA or ROCm device: half precision computes there, and scales there."""

import pytest
import torch
from torch import nn

from accel_core import plugins

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_it_computes_in_its_dtype_and_returns_fp32(name, dtype):
    policy = plugins.find(plugins.PRECISIONS, name)(torch.device("cuda", 0))
    seen = []

    class Noting(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    model = policy.convert(Noting(8, 8).cuda())
    x = torch.ones(2, 8, device="cuda")
    assert model(x).dtype == torch.float32
    assert seen == [dtype]
    with policy.autocast():
        assert (x @ x.T).dtype == dtype


def test_fp16_training_recovers_from_an_overflow():
    policy = plugins.find(plugins.PRECISIONS, "fp16")(torch.device("cuda", 0))
    model = policy.convert(nn.Linear(8, 1).cuda())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = policy.scaler(init_scale=2.0**40)  # beyond fp16: the first steps overflow
    before = model.weight.detach().clone()
    for _ in range(40):
        scaler.scale(model(torch.ones(4, 8, device="cuda")).pow(2).mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() < 2.0**40
    assert model.weight.isfinite().all()
    assert not torch.equal(before, model.weight)
