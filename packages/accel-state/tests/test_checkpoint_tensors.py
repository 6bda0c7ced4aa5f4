"""Tensors of every dtype, shape, layout and kind of sharing come back; other tools read the files."""

import itertools
import tracemalloc

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_core.errors import CheckpointError
from accel_state.checkpoint import CheckpointStore, Files, hashing, reading

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]
counter = itertools.count()
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def stored(tmp_path, values, name="some/thing"):
    """Save and open again; every byte is verified on the way."""
    store, path = CheckpointStore(), tmp_path / f"checkpoint-{next(counter)}"
    with store.save(path) as sink:
        sink.tensors(name, values)
    return store.open(path).tensors(name)


def same(one, other):
    """Compare dtype, shape and bytes: NaN equals itself, and some dtypes cannot be compared."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.numel() == 0 or raw(one).equal(raw(other))


def raw(value):
    """Return the bytes, also of one element with an odd stride."""
    return value.contiguous().as_strided((value.numel(),), (1,)).view(torch.uint8)


def random(dtype, *shape, seed=0):
    """Return random bytes as a tensor."""
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count * dtype.itemsize,), generator=generator)
    return raw.to(torch.uint8).view(dtype).reshape(shape)


@st.composite
def layouts(draw):
    """Draw a tensor of any dtype and shape, as it is or transposed, cut, flipped in order, or expanded."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    value = random(dtype, *shape, seed=draw(st.integers(0, 99)))
    how = draw(st.sampled_from(["plain", "transposed", "cut", "strided", "expanded"]))
    if how == "transposed" and value.dim() > 1:
        value = value.transpose(0, -1)
    elif how == "cut" and value.dim():
        value = value[1:]
    elif how == "strided" and value.dim():
        value = value[..., ::2]
    elif how == "expanded":
        value = value.unsqueeze(0).expand(3, *value.shape)
    return value


@settings(max_examples=60, deadline=None)
@given(
    values=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8), layouts(), max_size=6
    )
)
def test_every_layout_comes_back(tmp_path_factory, values):
    found = stored(tmp_path_factory.mktemp("round"), values)
    assert list(found) == list(values)
    for name, value in values.items():
        same(found[name], value)


def addresses(values):
    """Return which pairs of elements lie at one address: what sharing means."""
    return {
        (one, other, index)
        for one, other in itertools.combinations(sorted(values), 2)
        for index in [(values[one].data_ptr() - values[other].data_ptr())]
        if overlap(values[one], values[other])
    }


def span(value):
    reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
    return value.data_ptr(), value.data_ptr() + reach * value.element_size()


def overlap(one, other):
    (a, b), (c, d) = span(one), span(other)
    return a < d and c < b


@st.composite
def families(draw):
    """Draw views of one piece of memory, in several dtypes, that may overlap or lie side by side."""
    base = random(torch.float64, 12, seed=draw(st.integers(0, 9)))
    found = {}
    for number in range(draw(st.integers(1, 5))):
        dtype = draw(
            st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.int16])
        )
        flat = base.view(dtype)
        begin = draw(st.integers(0, flat.numel() - 2))
        end = draw(st.integers(begin + 1, flat.numel()))
        view = flat[begin : end : draw(st.integers(1, 3))]
        if view.numel() % 2 == 0 and draw(st.booleans()):
            view = view.unflatten(0, (2, -1)).t()
        found[f"v{number}"] = view
    return found


@settings(max_examples=120, deadline=None)
@given(values=families())
def test_what_overlaps_in_memory_does_so_again(tmp_path_factory, values):
    found = dict(stored(tmp_path_factory.mktemp("family"), values))
    for name, value in values.items():
        same(found[name], value)
    assert addresses(found) == addresses(values)


def test_a_tied_weight_is_stored_once_and_written_to_once(tmp_path):
    big = torch.randn(500, 100)
    found = stored(tmp_path, {"embed": big, "head": big, "rows": big[10:20]})
    files = list((tmp_path).rglob("*.safetensors"))
    assert len(files) == 1
    assert files[0].stat().st_size < big.nbytes + 1000
    found["embed"][12] = 7
    assert found["head"][12].eq(7).all()
    assert found["rows"][2].eq(7).all()


def test_neighbours_in_one_storage_are_independent(tmp_path):
    flat = torch.arange(10.0)
    found = stored(tmp_path, {"left": flat[:5], "right": flat[5:]})
    assert found["left"].untyped_storage().data_ptr() != found["right"].untyped_storage().data_ptr()
    assert found["left"].untyped_storage().nbytes() == 20


def test_changing_what_was_read_changes_no_file(tmp_path):
    store = CheckpointStore()
    with store.save(tmp_path / "one") as sink:
        sink.tensors("x", {"a": torch.zeros(1000)})
    source = store.open(tmp_path / "one")
    mine = source.tensors("x")
    mine["a"].fill_(1)
    assert mine["a"].sum() == 1000
    assert source.tensors("x")["a"].sum() == 0
    assert store.open(tmp_path / "one").tensors("x")["a"].sum() == 0


def test_what_was_read_outlives_the_checkpoint(tmp_path):
    store = CheckpointStore()
    with store.save(tmp_path / "one") as sink:
        sink.tensors("x", {"a": torch.arange(100_000)})
    value = store.open(tmp_path / "one").tensors("x")["a"]
    store.remove(tmp_path / "one")
    assert value.equal(torch.arange(100_000))


def test_parameters_lose_their_gradient_and_keep_their_values(tmp_path):
    layer = torch.nn.Linear(3, 2)
    found = stored(tmp_path, dict(layer.named_parameters()))
    assert not found["weight"].requires_grad
    same(found["weight"], layer.weight.detach())
    conjugate = torch.randn(3, dtype=torch.complex64).conj()
    same(stored(tmp_path, {"c": conjugate})["c"], conjugate.resolve_conj())


def test_the_library_reads_our_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    values = {
        f"{number}.{dtype}": random(dtype, 3, number, seed=number)
        for number, dtype in enumerate(DTYPES)
        if dtype.itemsize * 8 < 100 and "fnuz" not in str(dtype) and dtype is not torch.complex32
    }
    values |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 7)}
    stored(tmp_path, values)
    (file,) = tmp_path.rglob("*.safetensors")
    found = safetensors.load_file(file)
    assert set(found) == set(values)
    for name, value in values.items():
        same(found[name], value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(2, 2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "meta"),
        ([1.0], "list"),
        (None, "NoneType"),
    ],
    ids=["sparse", "meta", "list", "none"],
)
def test_what_has_no_plain_values_is_refused_by_name(tmp_path, value, reason):
    with pytest.raises(CheckpointError, match=f"'layer.bad' cannot be stored.*{reason}"):
        stored(tmp_path, {"good": torch.ones(1), "layer.bad": value})
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_overlaps_with_itself_and_another_is_refused(tmp_path):
    row = torch.ones(1, 3)
    with pytest.raises(CheckpointError, match="'many' overlaps with itself"):
        stored(tmp_path, {"row": row, "many": row.expand(4, 3)})
    same(stored(tmp_path, {"many": row.expand(4, 3)})["many"], torch.ones(4, 3))


def test_a_save_copies_no_tensor(tmp_path):
    values = {f"{number}": torch.zeros(1 << 20) for number in range(8)}
    tracemalloc.start()
    try:
        stored(tmp_path, values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 32 MiB were saved and verified: what Python allocated is headers and two buffers of a megabyte.
    assert peak < 6 << 20


@pytest.mark.parametrize("extra", [-1, 0, 1, 4096], ids="{:+d}".format)
def test_the_hash_of_a_large_file_is_that_of_its_parts(tmp_path, monkeypatch, extra):
    """Parts of 4096 bytes instead of 64 MiB: written in pieces, read in parts, and computed here."""
    monkeypatch.setattr("accel_state.checkpoint.hashing.PART", 4096)
    data = bytes(range(256)) * 48 + bytes(4096)
    data = data[: 3 * 4096 + extra]
    pieces = [memoryview(data)[begin : begin + 1000] for begin in range(0, len(data), 1000)]
    parts = [xxhash.xxh3_128(data[begin : begin + 4096]).digest() for begin in range(0, len(data), 4096)]
    expected = xxhash.xxh3_128(b"".join(parts)).hexdigest()
    assert hashing.written(Files(), tmp_path / "file", iter(pieces)) == (len(data), expected)
    assert hashing.read_hash(tmp_path / "file") == (len(data), expected)


def test_damage_in_any_part_of_a_large_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("accel_state.checkpoint.hashing.PART", 1000)
    store = CheckpointStore()
    with store.save(tmp_path / "one") as sink:
        sink.tensors("x", {"a": torch.arange(1000)})
    (file,) = tmp_path.rglob("*.safetensors")
    data = file.read_bytes()
    for place in range(0, len(data), 250):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: its xxh3"):
            store.open(tmp_path / "one")
    # Parts that changed places have the same hashes in another order.
    file.write_bytes(data[:2000] + data[3000:4000] + data[2000:3000] + data[4000:])
    with pytest.raises(CheckpointError, match=r"x\.safetensors: its xxh3"):
        store.open(tmp_path / "one")


@pytest.mark.gpu
def test_tensors_on_a_gpu_come_back_on_the_cpu(tmp_path):
    base = torch.randn(3000, 1000, device="cuda")
    found = stored(
        tmp_path, {"base": base, "turned": base.t(), "alone": torch.randn(4, 5, device="cuda").t()}
    )
    same(found["base"], base.cpu())
    assert found["turned"].data_ptr() == found["base"].data_ptr()
    assert found["turned"].equal(base.t().cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_read_into_memory_that_is_there(tmp_path, dtype):
    values = {"one": random(dtype, 3, 5), "none": random(dtype, 0, 2), "number": random(dtype, seed=2)}
    found = stored(tmp_path, values)
    targets = {name: torch.empty_like(value) for name, value in values.items()}
    done = found.read_into(targets)
    assert {"one", "number"} <= set(done)
    for name in done:
        same(targets[name], values[name])


def test_large_tensors_are_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PIECE", 1000)
    values = {
        name: torch.randn(777, generator=torch.Generator().manual_seed(place))
        for place, name in enumerate("abcd")
    }
    found = stored(tmp_path, values)
    targets = {name: torch.zeros(777) for name in values}
    assert sorted(found.read_into(targets)) == sorted(values)
    for name, value in values.items():
        same(targets[name], value)


def test_what_would_have_to_be_converted_is_left(tmp_path):
    whole = torch.arange(12.0)
    found = stored(tmp_path, {"a": torch.ones(2, 3), "whole": whole, "part": whole[3:7]})
    for target in (
        torch.zeros(3, 2),
        torch.zeros(2, 3).double(),
        torch.zeros(3, 2).t(),
        torch.empty(2, 3, device="meta"),
    ):
        assert found.read_into({"a": target}) == []
        assert target.is_meta or not target.any()
    assert found.read_into({"part": torch.zeros(4)}) == []


def test_a_file_that_became_shorter_is_an_error(tmp_path):
    found = stored(tmp_path, {"a": torch.ones(1000)})
    file = next(tmp_path.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="became shorter"):
        found.read_into({"a": torch.zeros(1000)})
