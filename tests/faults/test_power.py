"""A machine that loses its power keeps what was flushed, and of the rest anything or nothing.

Every operation of a save is followed by the worst that a disk may then hold: names and bytes that were
not flushed are gone, or the names are there and the bytes are zeros, or a mixture by folder.
"""

import importlib.util
import os
import random
from pathlib import Path

import pytest

from accel_state.checkpoint import CheckpointStore, Files

SAVER = Path(__file__).with_name("saver.py")
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files are found through /proc")


class Disk(Files):
    """Do the operations, remember by inode what was flushed, and call ``crash`` after each."""

    def __init__(self, crash=None):
        self.crash = crash
        self.bytes, self.names = {}, {}

    def sync(self, file):
        super().sync(file)
        self.bytes[os.fstat(file).st_ino] = Path(f"/proc/self/fd/{file}").resolve().read_bytes()
        self.after("sync")

    def sync_folder(self, path):
        super().sync_folder(path)
        self.flushed(path)
        self.after("sync_folder")

    def flushed(self, folder):
        self.names[folder.stat().st_ino] = {
            each.name: (each.is_dir(), each.stat().st_ino) for each in folder.iterdir()
        }

    def make_folder(self, path):
        super().make_folder(path)
        # Inodes are used again: what an earlier folder or file of this number held is of no concern.
        self.names[path.stat().st_ino] = {}
        self.after("make_folder")

    def create(self, path):
        file = super().create(path)
        self.bytes.pop(os.fstat(file).st_ino, None)
        self.after("create")
        return file

    def write(self, file, data):
        count = super().write(file, data)
        self.after("write")
        return count

    def rename(self, old, new):
        super().rename(old, new)
        self.after("rename")

    def remove(self, path):
        super().remove(path)
        self.after("remove")

    def remove_folder(self, path):
        super().remove_folder(path)
        self.after("remove_folder")

    def after(self, operation):
        if self.crash is not None:
            self.crash(operation)

    def remember(self, folder):
        """Take everything in ``folder`` for flushed."""
        self.flushed(folder)
        for each in folder.rglob("*"):
            if each.is_dir():
                self.flushed(each)
            else:
                self.bytes[each.stat().st_ino] = each.read_bytes()

    def left(self, real, copy, newer):
        """Write to ``copy`` what a disk may hold of ``real``: names flushed, or newer by folder."""
        inodes = {path.stat().st_ino: path for path in (real, *real.rglob("*"))}

        def restore(inode, place):
            place.mkdir()
            found = dict(self.names.get(inode, {}))
            if newer() and inode in inodes:
                found = {each.name: (each.is_dir(), each.stat().st_ino) for each in inodes[inode].iterdir()}
            for name, (is_folder, inner) in found.items():
                if is_folder:
                    restore(inner, place / name)
                else:
                    size = inodes[inner].stat().st_size if inner in inodes else 0
                    (place / name).write_bytes(self.bytes.get(inner, bytes(size)))

        restore(real.stat().st_ino, copy)


@pytest.fixture(scope="module")
def saver():
    spec = importlib.util.spec_from_file_location("faults_power_saver", SAVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", ["two", "three"], ids=["replaced", "new"])
def test_power_may_fail_after_any_operation(saver, tmp_path, target):
    real = tmp_path / "real"
    for value, name in ((1, "one"), (2, "two")):
        saver.save(str(real / name), value, 4000)
    disk = Disk()
    disk.remember(real)
    chance = random.Random(0)
    outcomes, count = [], 0

    def crash(operation):
        nonlocal count
        for newer in (lambda: False, lambda: True, lambda: chance.random() < 0.5):
            count += 1
            copy = tmp_path / f"{count}"
            disk.left(real, copy, newer)
            source = CheckpointStore().open_latest(copy)
            assert source is not None, (count, operation)
            outcomes.append(saver.value_of(source))
            assert saver.value_of(CheckpointStore().open(copy / "one")) == 1
            if target == "two":
                assert saver.value_of(CheckpointStore().open(copy / "two")) in {2, 3}
            # The save of the restarted run works too.
            saver.save(str(copy / "next"), 9, 10)
            assert saver.value_of(CheckpointStore().open_latest(copy)) == 9

    disk.crash = crash
    saver.save(str(real / target), 3, 4000, disk)
    assert set(outcomes) == {2, 3}
    # Whoever was told that the save is done has it, whatever the disk forgets.
    assert outcomes[-3:] == [3, 3, 3]
    assert len(outcomes) > 60


def test_the_simulation_finds_a_flush_that_is_left_out(saver, tmp_path):
    """Without the flushes there are states that lose the new checkpoint although its save returned."""

    class Careless(Disk):
        def sync(self, file):
            return

        def sync_folder(self, path):
            return

    disk = Careless()
    (tmp_path / "real").mkdir()
    disk.remember(tmp_path / "real")
    saver.save(str(tmp_path / "real" / "one"), 3, 4000, disk)
    for number, newer in enumerate((lambda: False, lambda: True)):
        disk.left(tmp_path / "real", tmp_path / f"{number}", newer)
        assert CheckpointStore().latest(tmp_path / f"{number}") is None
