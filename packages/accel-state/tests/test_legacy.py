"""Folders of pickles are read like the documents lay them out, and nothing in them runs."""

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from accel_core.errors import CheckpointError
from accel_state import rng_state, weights
from accel_state.checkpoint import CheckpointStore
from accel_state.legacy import read_legacy

np = pytest.importorskip("numpy")


def rng(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return {
        "step": 7,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
        "torch_cuda_manual_seed": [torch.get_rng_state()],
    }


class Run:
    """What a run of two models saves, as the documents and a run of the other library show it."""

    def __init__(self, folder, *, safe=True, archive=True):
        torch.manual_seed(0)
        self.folder, self.safe, self.archive = folder, safe, archive
        self.models = [nn.Linear(2, 3), nn.BatchNorm1d(2)]
        # As optimizers and schedules write it; making real ones would import torch's compiler.
        group = {"lr": 0.01, "betas": (0.9, 0.999), "amsgrad": False, "fused": None, "params": [0, 1]}
        moments = {"step": torch.tensor(5.0), "exp_avg": torch.rand(3, 2), "exp_avg_sq": torch.rand(3, 2)}
        self.optimizers = [
            {"state": {0: moments, 1: {}}, "param_groups": [group]},
            {"state": {0: {"momentum_buffer": None}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        ]
        self.schedulers = [
            {"base_lrs": [0.01], "last_epoch": 5, "_last_lr": [0.002], "lr_lambdas": [None]},
            {"T_max": 10, "eta_min": 0.0, "_is_initial": False},
        ]

    def put(self, name, value):
        torch.save(value, self.folder / name, _use_new_zipfile_serialization=self.archive)

    def save(self):
        self.folder.mkdir(exist_ok=True)
        for number, model in enumerate(self.models):
            suffix = f"_{number}" if number else ""
            if self.safe:
                (weights_file,) = weights.save(model.state_dict(), self.folder / "made")
                weights_file.rename(self.folder / f"model{suffix}.safetensors")
                (self.folder / "made").rmdir()
            else:
                self.put(f"pytorch_model{suffix}.bin", model.state_dict())
            self.put(f"optimizer{suffix}.bin", self.optimizers[number])
            self.put(f"scheduler{suffix}.bin", self.schedulers[number])
        self.put("sampler.bin", {"epoch": 3, "seed": 5})
        self.put("dl_state_dict.bin", {"_num_yielded": 9, "states": [b"bytes", None, True]})
        self.put("scaler.pt", {"scale": 1024.0, "growth_factor": 2.0, "_growth_tracker": 3})
        for rank in range(2):
            self.put(f"random_states_{rank}.pkl", rng(rank))
        self.put("custom_checkpoint_0.pkl", OrderedDict(a=torch.arange(3), b={"c": np.eye(2)}))
        self.put("custom_checkpoint_1.pkl", [1, 2.5, {"x"}])


def equal(one, other):
    """Compare nested containers of tensors and arrays, and their types."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.equal(other)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert (one == other).all()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            equal(left, right)
    else:
        assert one == other


@pytest.mark.parametrize(("safe", "archive"), [(True, True), (False, True), (False, False)])
def test_everything_is_read(tmp_path, safe, archive):
    run = Run(tmp_path / "old", safe=safe, archive=archive)
    run.save()
    found = read_legacy(run.folder)
    assert found.unread == {}
    for number, model in enumerate(run.models):
        values = found.models[number]
        equal({name: values[name] for name in model.state_dict()}, dict(model.state_dict()))
        equal(found.optimizers[number], run.optimizers[number])
        equal(found.schedulers[number], run.schedulers[number])
    assert found.samplers == [{"epoch": 3, "seed": 5}]
    assert found.loaders == [{"_num_yielded": 9, "states": [b"bytes", None, True]}]
    assert found.scaler == {"scale": 1024.0, "growth_factor": 2.0, "_growth_tracker": 3}
    for rank in range(2):
        equal(found.random_states[rank], rng(rank))
    equal(found.custom, [OrderedDict(a=torch.arange(3), b={"c": np.eye(2)}), [1, 2.5, {"x"}]])


def test_the_generators_go_on(tmp_path):
    run = Run(tmp_path / "old")
    run.save()
    state = read_legacy(run.folder).random_states[1]
    rng(1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.setstate(state["random_state"])
    np.random.set_state(state["numpy_random_seed"])
    torch.set_rng_state(state["torch_manual_seed"])
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_the_generators_are_those_of_our_own_checkpoints(tmp_path):
    run = Run(tmp_path / "old")
    run.save()
    states = read_legacy(run.folder).generators()
    assert [sorted(state) for state in states] == [["cuda", "numpy", "python", "torch"]] * 2
    for rank in range(2):
        rng(rank)
        expected = (random.random(), np.random.rand(), torch.rand(1).item())
        rng(9)
        report = rng_state.restore(states, rank, 2)
        assert set(report.restored) == {"numpy", "python", "torch"}
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.parametrize(
    "change", [{"random_state": 1}, {"numpy_random_seed": (1, 2)}, {"torch_cuda_manual_seed": []}, None]
)
def test_generators_that_cannot_be(tmp_path, change):
    run = Run(tmp_path / "old")
    run.save()
    run.put("random_states_1.pkl", {} if change is None else rng(1) | change)
    with pytest.raises(CheckpointError, match="random states of rank 1 cannot be used"):
        read_legacy(run.folder).generators()


# -- arrays --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.uint32),
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(8.0).reshape(2, 4)),
        np.zeros((0, 3), np.int8),
        np.array(5, np.int64),
        np.arange(4, dtype=">i4"),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.float64(2.5),
        np.int32(7),
    ],
    ids=repr,
)
def test_arrays_of_plain_numbers(tmp_path, value):
    torch.save({"v": value}, tmp_path / "custom_checkpoint_0.pkl")
    found = read_legacy(tmp_path)
    assert found.unread == {}
    equal(found.custom[0]["v"], value)
    if isinstance(value, np.ndarray):
        assert found.custom[0]["v"].flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        np.array([{"a": 1}], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.array(["text"]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.dtype("f4"),
    ],
    ids=repr,
)
def test_other_arrays_are_not_read(tmp_path, value):
    torch.save({"v": value}, tmp_path / "custom_checkpoint_0.pkl")
    found = read_legacy(tmp_path)
    assert found.custom == []
    assert "custom_checkpoint_0.pkl" in found.unread


class Made:
    """Pickled as a call of a function of NumPy with arguments and a state of the test's choice."""

    def __init__(self, function, arguments, state=None):
        self.parts = (function, arguments, state)

    def __reduce__(self):
        return self.parts


def lying_dtype():
    # An object dtype whose flags say that its items are plain bytes: NumPy would take them for addresses.
    return Made(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))


def array(shape, dtype, data):
    return Made(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: array((1,), lying_dtype(), b"\x10" * 8), "something else than plain numbers"),
        (lambda: array((2**40,), np.dtype("f8"), b"x" * 8), "does not fit its bytes"),
        (lambda: array((-1,), np.dtype("f8"), b"x" * 8), "impossible shape"),
        (lambda: array("shape", np.dtype("f8"), b"x" * 8), "impossible shape"),
        (lambda: array((1,), np.dtype("f8"), [1]), "something else than plain numbers"),
        (lambda: array((1,), "f8", b"x" * 8), "something else than plain numbers"),
        (lambda: Made(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b")), "without its parts"),
        (lambda: [np.ndarray], "no array"),
    ],
    ids=["dtype", "size", "negative", "text", "list", "name", "empty", "class"],
)
def test_arrays_that_lie(tmp_path, make, said):
    torch.save({"v": make()}, tmp_path / "custom_checkpoint_0.pkl")
    found = read_legacy(tmp_path)
    assert found.custom == []
    assert said in found.unread["custom_checkpoint_0.pkl"]


def test_what_the_program_allows_stays_allowed(tmp_path):
    from torch import serialization

    before = serialization.get_safe_globals()
    mine = [np._core.multiarray._reconstruct, np.ndarray, np.dtype, OrderedDict]
    try:
        with serialization.safe_globals(mine):
            torch.save({"v": np.arange(3)}, tmp_path / "custom_checkpoint_0.pkl")
            torch.save({"v": array((1,), lying_dtype(), b"\x10" * 8)}, tmp_path / "custom_checkpoint_1.pkl")
            found = read_legacy(tmp_path)
            assert set(mine) <= set(serialization.get_safe_globals())
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)
    equal(found.custom[0]["v"], np.arange(3))
    assert list(found.unread) == ["custom_checkpoint_1.pkl"], "NumPy's own functions are not in its place"


# -- what is not read ----------------------------------------------------------------------------


class Bomb:
    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


BOMBS = {
    "mkdir": lambda: Bomb(os.mkdir, "exploded"),
    "eval": lambda: Bomb(eval, "__import__('os').mkdir('exploded')"),
    "getattr": lambda: Bomb(getattr, OrderedDict, "fromkeys"),
    "numpy": lambda: Bomb(np.save, "exploded", np.ones(1)),
    "torch": lambda: Bomb(torch.save, {}, "exploded"),
    "nested": lambda: {"state": {0: [torch.ones(1), (Bomb(os.mkdir, "exploded"),)]}},
}
NAMES = [
    "pytorch_model.bin",
    "optimizer.bin",
    "scheduler.bin",
    "sampler.bin",
    "scaler.pt",
    "random_states_0.pkl",
    "custom_checkpoint_0.pkl",
    "dl_state_dict.bin",
]


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("archive", [True, False])
def test_bombs_do_not_go_off(tmp_path, monkeypatch, kind, archive):
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    for name in NAMES:
        torch.save(BOMBS[kind](), Path("old", name), _use_new_zipfile_serialization=archive)
    Path("old/custom_checkpoint_1.pkl").write_bytes(pickle.dumps(BOMBS[kind]()))
    found = read_legacy("old")
    assert sorted(found.unread) == sorted([*NAMES, "custom_checkpoint_1.pkl"])
    assert not any([found.models, found.optimizers, found.random_states, found.custom, found.scaler])
    assert [each.name for each in Path.cwd().iterdir()] == ["old"]
    if archive:
        assert "GLOBAL" in found.unread["optimizer.bin"]


def test_the_others_keep_their_places(tmp_path):
    run = Run(tmp_path)
    run.save()
    run.put("optimizer.bin", Bomb(os.getcwd))
    (tmp_path / "scheduler.bin").unlink()
    run.put("custom_checkpoint_0.pkl", Bomb(os.getcwd))
    found = read_legacy(tmp_path)
    assert set(found.unread) == {"optimizer.bin", "custom_checkpoint_0.pkl"}
    assert found.optimizers[0] is None
    equal(found.optimizers[1], run.optimizers[1])
    assert found.schedulers[0] is None
    assert found.custom == [None, [1, 2.5, {"x"}]]


def test_links_folders_and_strangers_are_named(tmp_path):
    outside = tmp_path / "outside.bin"
    torch.save({"secret": 1}, outside)
    old = tmp_path / "old"
    run = Run(old)
    run.save()
    (old / "optimizer_2.bin").symlink_to(outside)
    (old / "pytorch_model_fsdp_0").mkdir()
    (old / "model_99999.safetensors").write_bytes(b"")
    (old / "notes.txt").write_text("mine")
    run.put("pytorch_model.bin", run.models[0].state_dict())
    run.put("scaler.pt", [1])
    found = read_legacy(old)
    assert found.unread == {
        "optimizer_2.bin": "is a link, which may lead anywhere",
        "pytorch_model_fsdp_0": "is a folder: shards of another kind are not read",
        "model_99999.safetensors": "has no known name",
        "notes.txt": "has no known name",
        "pytorch_model.bin": "there is another file for the same model",
        "scaler.pt": "holds a list and no state by name",
    }
    assert len(found.optimizers) == 2


@pytest.mark.parametrize("name", [*NAMES, "model.safetensors"])
@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04N.", bytes(range(256)) * 9])
def test_damage_is_named(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = read_legacy(tmp_path)
    assert set(found.unread) | ({name} if found.custom or found.samplers or found.loaders else set()) == {
        name
    }


def changed(data, generator):
    """Return ``data`` with a bit flipped, bytes left out, put in or cut off."""
    place, how = generator.randrange(len(data)), generator.randrange(4)
    flipped = bytes([data[place] ^ (1 << generator.randrange(8))])
    middle, rest = [
        (flipped, 1),
        (b"", generator.randrange(1, 9)),
        (generator.randbytes(3), 0),
        (b"", len(data)),
    ][how]
    return data[:place] + middle + data[place + rest :]


@pytest.mark.parametrize("archive", [True, False])
def test_whatever_is_damaged_there_is_a_reason_and_no_other_error(tmp_path, archive):
    """Nothing but CheckpointError comes out of torch's parsers; with real damage their own errors vary."""
    file = tmp_path / "random_states_0.pkl"
    torch.save(rng(0) | {"random_state": (3, (1, 2), None)}, file, _use_new_zipfile_serialization=archive)
    data, generator = file.read_bytes(), random.Random(0)
    members = {}
    if archive:
        with zipfile.ZipFile(file) as old:
            members = {name: old.read(name) for name in old.namelist()}
    for _ in range(120):
        if archive:
            # Inside, where no checksum of the archive finds it first.
            with zipfile.ZipFile(file, "w") as new:
                for name, content in members.items():
                    new.writestr(name, changed(content, generator) if name.endswith(".pkl") else content)
        else:
            file.write_bytes(changed(data, generator))
        found = read_legacy(tmp_path)
        assert bool(found.random_states) != bool(found.unread)


def handmade(path, code):
    """Write an archive like torch's with a pickle of the test's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def test_containers_without_end(tmp_path):
    # A list in a list in a list, each a hundred times: 10 kB that would be 100**40 lists.
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([n]) + b"(" + b"h" + bytes([n - 1]) + (b"h" + bytes([n - 1])) * 99 + b"e"
        for n in range(1, 40)
    )
    handmade(tmp_path / "custom_checkpoint_0.pkl", laughs + b".")
    handmade(tmp_path / "custom_checkpoint_1.pkl", b"\x80\x02]q\x00h\x00a.")
    found = read_legacy(tmp_path)
    assert found.unread == {"custom_checkpoint_1.pkl": "It holds a container that contains itself"}


def test_folders_that_are_none(tmp_path):
    with pytest.raises(CheckpointError, match="Could not read the old checkpoint: No such file"):
        read_legacy(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds nothing that save_state.*\n  where: it is empty"):
        read_legacy(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"where: a.txt"):
        read_legacy(tmp_path)
    with CheckpointStore().save(tmp_path / "ours") as sink:
        sink.json("run", {})
    with pytest.raises(CheckpointError, match=r"is a checkpoint of accel.*\n.*\n.*leave legacy=True out"):
        read_legacy(tmp_path / "ours")
