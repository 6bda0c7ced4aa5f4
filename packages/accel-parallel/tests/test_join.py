"""What a rank that ended early is given in the end: the state of one that went on."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from accel_core.protocols import LonelyCollectives
from accel_parallel import AcceleratedOptimizer
from accel_parallel.join import copy_state

pytestmark = pytest.mark.cpu


class Gloo(LonelyCollectives):
    def __init__(self):
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def broadcast(self, tensor, src=0):
        tensor = tensor.clone()
        dist.broadcast(tensor, src)
        return tensor

    def broadcast_object(self, value, src=0):
        box = [value]
        dist.broadcast_object_list(box, src)
        return box[0]


def plain(value):
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def copied(kind, amsgrad):
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = nn.Linear(3, 2)
    made = {
        "adam": lambda: torch.optim.Adam(model.parameters(), lr=0.1 * (rank + 1), amsgrad=amsgrad),
        "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    }[kind]()
    optimizer = AcceleratedOptimizer(made)
    scheduler = torch.optim.lr_scheduler.StepLR(made, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** (3 + rank))
    for _ in range(3 * rank):  # rank 0 takes no step: its state is empty
        model(torch.ones(1, 3)).sum().backward()
        made.step()
        scheduler.step()
    copy_state([optimizer, scheduler, scaler], Gloo(), 1)
    return plain([optimizer.state_dict(), scheduler.state_dict(), scaler.state_dict()])


@pytest.mark.parametrize(("kind", "amsgrad"), [("adam", False), ("adam", True), ("sgd", False)])
def test_state_of_the_last_rank_reaches_one_that_never_stepped(pool, kind, amsgrad):
    first, second = pool.run_in_group(2, copied, kind, amsgrad)
    assert first == second
    assert first[0]["state"].keys() == {0, 1}
    assert first[1]["last_epoch"] == 3
    assert first[2]["scale"] == 16.0
