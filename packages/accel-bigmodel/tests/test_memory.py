"""How much memory there is: on the host, in its container, on accelerators."""

import psutil
import pytest
import torch

from accel_bigmodel import get_max_memory
from accel_bigmodel.planning.host import container_rooms, host_memory
from accel_core.testing.standin.fixture import standin  # noqa: F401 - a fixture

GIB = 2**30


def test_the_host_has_no_more_than_is_free():
    free = host_memory()
    assert 0 < free <= psutil.virtual_memory().total
    assert free <= psutil.virtual_memory().available * 1.5


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(str(text))


def test_a_container_of_version_2_leaves_what_its_groups_leave(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/slice/pod\n")
    stat = "anon 5\ninactive_file 300\nactive_file 7\n"
    group(root / "slice" / "pod", memory__max=1000, memory__current=600, memory__stat=stat)
    group(root / "slice", memory__max="max", memory__current=900)
    group(root, memory__stat="")
    assert container_rooms(root, own) == [1000 - 300]
    group(root / "slice", memory__max=800, memory__current=750)
    assert sorted(container_rooms(root, own)) == [50, 700]


def test_a_container_of_version_1(tmp_path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n")
    files = {"memory__limit_in_bytes": 1000, "memory__usage_in_bytes": 400}
    group(root / "memory" / "docker" / "x", **files, memory__stat="total_inactive_file 100\n")
    group(root / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=10**9)
    assert container_rooms(root, own) == [700]


@pytest.mark.parametrize("path", ["/../outside", "/gone", "/"])
def test_a_container_of_its_own_namespace_is_the_root(tmp_path, path):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text(f"0::{path}\n")
    group(root, memory__max=1000, memory__current=100)
    group(tmp_path / "outside", memory__max=1, memory__current=1)
    assert container_rooms(root, own) == [900]


def test_no_container_at_all(tmp_path):
    assert container_rooms(tmp_path, tmp_path / "missing") == []
    (tmp_path / "own").write_text("0::/a\n")
    group(tmp_path / "a", memory__max="nonsense", memory__current=1)
    assert container_rooms(tmp_path, tmp_path / "own") == []


@pytest.mark.gpu
def test_a_real_accelerator_offers_what_is_free():
    before = get_max_memory()
    total = torch.accelerator.device_count()
    assert list(before) == [*range(total), "cpu"]
    held = torch.empty(256 * 2**20, dtype=torch.uint8, device=torch.device(_kind(), 0))
    assert before[0] - get_max_memory()[0] >= 200 * 2**20
    del held
    # What torch keeps for later is free to us.
    assert get_max_memory()[0] >= before[0] - 64 * 2**20


def _kind():
    return torch.accelerator.current_accelerator().type


def test_accelerators_that_tell_less(standin):  # noqa: F811
    def body():
        import torch

        from accel_bigmodel import get_max_memory
        from accel_core.errors import CapabilityError

        module = torch.standin
        original = dict(vars(module))
        try:
            held = torch.ones(250, device="standin:0")
            whole = get_max_memory()[0]
            # Memory that torch keeps for itself is free to use.
            module.memory_reserved = lambda device: module.memory_allocated(device) + 5000
            kept = get_max_memory()[0]

            def refuse(device):
                raise RuntimeError(f"no driver for {device}")

            module.mem_get_info = refuse
            properties = type("Properties", (), {"total_memory": 70_000_000})
            module.get_device_properties = lambda device: properties
            total = get_max_memory()[0] + module.memory_allocated(0)
            del module.get_device_properties
            try:
                get_max_memory()
                said = ""
            except CapabilityError as error:
                said = str(error)
            module.recommended_max_memory = lambda: 12345
            shared = get_max_memory()[0]
            del held
        finally:
            for name in set(vars(module)) - set(original):
                delattr(module, name)
            vars(module).update(original)
        return whole, kept, total, said, shared

    ((whole, kept, total, said, shared),) = standin.run(1, body)
    assert kept == whole + 5000
    assert total == 70_000_000
    assert "standin:0 does not tell how much memory it has" in said
    assert "max_memory" in said
    assert shared == 12345


def test_devices_that_are_not_the_host(standin):  # noqa: F811
    def body():
        import torch
        from torch import nn

        from accel_bigmodel import get_max_memory, infer_auto_device_map, plan_device_map
        from accel_core.errors import UnknownNameError

        torch.standin.set_limit(10_000, 0)
        torch.standin.set_limit(3_000, 1)
        held = torch.ones(250, device="standin:0")
        found = get_max_memory()
        named = get_max_memory({"standin:1": "2KB", "standin:0": 7, "cpu": 5})
        try:
            get_max_memory({"standing:1": 5})
            wrong = None
        except UnknownNameError as error:
            wrong = error.nearest
        model = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(30)))
        # 400 bytes each: 22 fit the first, 7 the second.
        device_map = infer_auto_device_map(model)
        plan = plan_device_map(model, "sequential")
        held_bytes = held.nbytes
        del held
        for number in (0, 1):
            torch.standin.set_limit(1 << 26, number)
        return found, named, wrong, device_map, plan.as_dict(), held_bytes

    ((found, named, wrong, device_map, plan, held),) = standin.run(1, body)
    # Other tests may have left something on them.
    assert 5_000 < found[0] <= 10_000 - held
    assert 2_000 < found[1] <= 3_000
    assert list(found) == [0, 1, "cpu"]
    assert list(named.items()) == [(0, 7), (1, 2000), ("cpu", 5)]
    assert wrong is not None
    counts = {device: list(device_map.values()).count(device) for device in (0, 1, "cpu")}
    assert counts[0] == (found[0] - 400) // 400
    assert counts[1] == found[1] // 400
    assert counts["cpu"] == 30 - counts[0] - counts[1]
    # Measured memory is not used to the brim.
    assert [share["limit"] for share in plan["devices"][:2]] == [
        found[0] - found[0] // 10,
        found[1] - found[1] // 10,
    ]
    assert any("tenth" in note for note in plan["notes"])
