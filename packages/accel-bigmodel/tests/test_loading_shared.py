"""Loading with several processes: rank 0 reads for all, sharded models get their shards, errors reach all."""

import pytest
import torch
from torch import nn

from accel_bigmodel import init_empty_weights, load_checkpoint_and_dispatch, load_checkpoint_in_model
from accel_core.errors import AccelError, StateError

safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.world(2)


class Model(nn.Module):
    """Of sizes that two do not divide, with a tie, a buffer, an integer and an empty tensor."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.layer = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.back = nn.Linear(5, 6, bias=False)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight
        self.none = nn.Parameter(torch.empty(0, 3))

    def forward(self, ids):
        return self.head(self.back(self.norm(self.layer(self.embed(ids)))))


IDS = torch.tensor([1, 5, 6])


def trained():
    torch.manual_seed(3)
    model = Model()
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) * 3)
    return model.eval()


def skeleton():
    with init_empty_weights():
        return Model().eval()


def saved(folder, kind="safe", **more):
    state = {name: value for name, value in trained().state_dict().items() if name != "head.weight"} | more
    if kind == "safe":
        safetensors.save_file(state, folder / "model.safetensors")
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return str(folder)


def same(model):
    state = trained().state_dict()
    found = {
        name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()
    }
    return [name for name in state if not torch.equal(found[name], state[name])]


def attempt(function):
    try:
        return function()
    except AccelError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", ["safe", "torch"])
@pytest.mark.parametrize("parcel", [None, 8])
def test_rank_0_reads_for_all(pool, tmp_path, kind, parcel):
    folder = saved(tmp_path, kind)

    def load():
        from accel_bigmodel.loading import shared

        if parcel is not None:
            shared._PARCEL = parcel
        try:
            # Only one process has the file.
            path = folder if torch.distributed.get_rank() == 0 else "/nowhere"
            model, real = skeleton(), Model().eval()
            report = load_checkpoint_in_model(model, path, broadcast_from_rank0=True, strict=True)
            load_checkpoint_in_model(real, path, broadcast_from_rank0=True)
            half = load_checkpoint_and_dispatch(
                skeleton(), path, {"": "cpu"}, dtype=torch.float16, broadcast_from_rank0=True
            )
            kinds = {str(tensor.dtype) for tensor in half.parameters()}
            tied = model.head.weight is model.embed.weight
            return same(model), same(real), tied, report.ok, kinds, model(IDS)
        finally:
            shared._PARCEL = 64 << 20

    expected = trained()(IDS)
    for wrong, wrong_real, tied, ok, kinds, output in pool.run_in_group(2, load):
        assert wrong == wrong_real == []
        assert tied
        assert ok
        assert kinds == {"torch.float16"}
        assert torch.equal(output, expected)


def test_an_error_on_one_rank_is_an_error_on_all(pool, tmp_path):
    folder = saved(tmp_path)

    def load():
        rank = torch.distributed.get_rank()
        found = []
        for path in ("/nowhere", folder):
            model = skeleton()
            if path == folder and rank == 1:
                # Another model than the others have.
                model.layer = nn.Linear(6, 4)
            found.append(
                attempt(lambda m=model, p=path: load_checkpoint_in_model(m, p, broadcast_from_rank0=True))
            )
            found.append(model.embed.weight.is_meta)
        found.append(
            attempt(
                lambda: load_checkpoint_in_model(skeleton(), folder, {"": "disk"}, broadcast_from_rank0=True)
            )
        )
        return found

    first, second = pool.run_in_group(2, load)
    assert "There is no file /nowhere" in first[0]
    assert "Another rank cannot load" in second[0]
    assert "rank 0: CheckpointError: There is no file /nowhere" in second[0]
    assert "rank 1: CheckpointError" in first[2]
    assert "layer.weight: shape (5, 6) in the checkpoint, (4, 6) in the model" in second[2]
    # Nothing was loaded anywhere.
    assert first[1] is second[1] is first[3] is second[3] is True
    assert "cannot stay in files" in first[4]
    assert "cannot stay in files" in second[4]


def test_a_model_that_is_offloaded_on_one_rank(pool, tmp_path):
    folder = saved(tmp_path)

    def load():
        model = skeleton()
        if torch.distributed.get_rank() == 1:
            load_checkpoint_and_dispatch(model, folder, {"": "disk"})
        return attempt(lambda: load_checkpoint_in_model(model, folder, broadcast_from_rank0=True))

    first, second = pool.run_in_group(2, load)
    assert "Another rank cannot load" in first
    assert "offloaded already" in second


def test_a_file_that_ends_early_is_an_error_on_all(pool, tmp_path):
    folder = saved(tmp_path)

    def load():
        from accel_bigmodel.weights.reader import CheckpointWeights

        before = CheckpointWeights.location

        def far(self, name):
            from dataclasses import replace

            place = before(self, name)
            return replace(place, begin=place.begin + 10**6, end=place.end + 10**6)

        model = skeleton()
        CheckpointWeights.location = far
        try:
            return attempt(
                lambda: load_checkpoint_in_model(model, folder, broadcast_from_rank0=True)
            ), same_meta(model)
        finally:
            CheckpointWeights.location = before

    def same_meta(model):
        return {tensor.is_meta for tensor in model.parameters()}

    first, second = pool.run_in_group(2, load)
    assert "The file ends" in first[0]
    assert "Rank 0 could not read" in second[0]
    assert first[1] == second[1] == {True}


def test_it_needs_a_process_group(tmp_path):
    with pytest.raises(StateError, match="process group"):
        load_checkpoint_in_model(skeleton(), saved(tmp_path), broadcast_from_rank0=True)


# -- models that are sharded already ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safe", "torch"])
@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("start", ["meta", "real"])
def test_a_model_sharded_by_fsdp2_gets_its_shards(pool, tmp_path, kind, broadcast, start):
    folder = saved(tmp_path, kind)

    def load():
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        model = skeleton() if start == "meta" else Model().eval()
        for part in (model.layer, model.back, model):
            fully_shard(part, mesh=mesh)
        load_checkpoint_in_model(model, folder, broadcast_from_rank0=broadcast)
        rows = model.layer.weight.to_local().shape[0]
        wrong = same(model)
        output = model(IDS)
        # Gradients come back to the shards.
        model.train()(IDS).sum().backward()
        grad = model.layer.weight.grad.full_tensor()
        return wrong, rows, output.detach(), grad

    results = pool.run_in_group(2, load)
    plain = trained()
    expected = plain(IDS)
    plain.train()(IDS).sum().backward()
    assert [rows for _, rows, _, _ in results] == [3, 2]
    for wrong, _, output, grad in results:
        assert wrong == []
        assert torch.equal(output, expected)
        # Sums over two ranks, halved.
        assert torch.allclose(grad, plain.layer.weight.grad, atol=1e-6)


@pytest.mark.parametrize("start", ["meta", "real"])
def test_a_model_that_is_split_by_columns_and_rows(pool, tmp_path, start):
    folder = saved(tmp_path)

    def load():
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        mesh = init_device_mesh("cpu", (2,))
        model = skeleton() if start == "meta" else Model().eval()
        parallelize_module(model, mesh, {"layer": ColwiseParallel(), "back": RowwiseParallel()})
        load_checkpoint_in_model(model, folder)
        return (
            same(model),
            tuple(model.layer.weight.to_local().shape),
            tuple(model.back.weight.to_local().shape),
        )

    first, second = pool.run_in_group(2, load)
    assert first == ([], (3, 6), (6, 3))
    assert second == ([], (2, 6), (6, 2))


def test_a_rank_reads_only_its_own_rows(pool, tmp_path):
    folder = saved(tmp_path)

    def load():
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        from accel_bigmodel.loading import placing

        model = skeleton()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        read, fill = [], placing.fill

        def noting(wanted):
            wanted = list(wanted)
            read.extend(place.end - place.begin for _, place in wanted if place.shape[1:] == (6,))
            fill(wanted)

        placing.fill = noting
        try:
            load_checkpoint_in_model(model, folder)
        finally:
            placing.fill = fill
        return sum(read)

    # embed 7 rows of 6 numbers, layer 5 of them: the larger half first.
    assert pool.run_in_group(2, load) == [(4 + 3) * 24, (3 + 2) * 24]


def test_files_of_shards(pool, tmp_path):
    def load():
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        rank = torch.distributed.get_rank()
        mesh = init_device_mesh("cpu", (2,))
        model = skeleton()
        fully_shard(model, mesh=mesh)
        whole = trained().state_dict()
        parts = {}
        for name, tensor in model.state_dict().items():
            if name == "head.weight":
                continue
            if not hasattr(tensor, "to_local"):
                parts[name] = whole[name]
                continue
            rows = tensor.to_local().shape[0]
            parts[name] = whole[name][-rows if rank else 0 :][:rows].clone()
        path = tmp_path / f"rank{rank}.safetensors"
        safetensors.save_file(parts, path)
        load_checkpoint_in_model(model, path, full_state_dict=False)
        return same(model), attempt(lambda: load_checkpoint_in_model(skeleton(), path, full_state_dict=False))

    for wrong, text in pool.run_in_group(2, load):
        assert wrong == []
        # The model is whole, and the file is not.
        assert "shape" in text
