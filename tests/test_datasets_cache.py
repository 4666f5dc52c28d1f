"""The cache of decoded pictures: the same tensors, decoded once, whatever happens to files and processes meanwhile."""

from __future__ import annotations

import contextlib
import copy
import gc
import mmap
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from segzoo.datasets import PairedFolder, _cache, _code, _memory, _room
from segzoo.datasets._cache import Cache, FolderCache, open_cache
from segzoo.datasets._code import code_of
from segzoo.datasets._entries import HEADER, Entry
from segzoo.datasets._memory import MemoryCache, PrivateCache

KINDS = ["memory", "folder", "private"]
SIZE = 8  # pictures

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # of fork, from Python 3.12


class Counting(PairedFolder):
    """Notes in a file, which all processes share, what it decodes."""

    log: Path

    def read_image(self, path: Path) -> np.ndarray:
        self._note(path)
        return super().read_image(path)

    def read_mask(self, path: Path) -> np.ndarray:
        self._note(path)
        return super().read_mask(path)

    def _note(self, path: Path) -> None:
        with self.log.open("a") as file:
            file.write(f"{path}\n")

    def decoded(self) -> list[str]:
        """Since the last call."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [Path(line).parent.name[0] + Path(line).stem for line in lines]


@pytest.fixture
def made(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Counting]:
    """Data sets of one pair of folders, each with a log of its own."""
    for i in range(SIZE):
        for place, shape in (("images", (11, 7 + i, 3)), ("masks", (11, 7 + i))):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 3, shape).astype(np.uint8)).save(tmp_path / place / f"{i}.png")

    def make(kind: str | None, **options: Any) -> Counting:
        cache = {"folder": tmp_path / "cache", "private": None}.get(str(kind), kind)
        dataset = Counting(tmp_path / "images", tmp_path / "masks", cache=cache, **options)
        if kind == "private":
            dataset._cache = PrivateCache()
        dataset.log = tmp_path / f"log{len(list(tmp_path.glob('log*')))}"
        dataset.log.touch()
        return dataset

    return make


def same(first: PairedFolder, second: PairedFolder) -> bool:
    pairs = [(a, b) for i in range(len(first)) for a, b in zip(first[i], second[i])]
    return all(type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_is_what_decoding_gave(made: Callable[..., Counting], kind: str) -> None:
    dataset, plain = made(kind), made(None)
    assert same(dataset, plain) and len(dataset.decoded()) == 2 * SIZE
    assert same(dataset, plain) and dataset.decoded() == []
    assert all(tensor.is_contiguous() for pair in dataset for tensor in pair)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_caller_does_to_a_tensor_stays_there(made: Callable[..., Counting], kind: str) -> None:
    dataset, plain = made(kind), made(None)
    for _ in range(2):  # what was decoded just now, then a hit
        for pair in dataset:
            for tensor in pair:
                tensor.add_(17)
    assert same(dataset, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_decoded_again(made: Callable[..., Counting], kind: str) -> None:
    dataset = made(kind)
    list(dataset)
    dataset.decoded()
    mask = dataset.samples[3].mask
    assert mask is not None
    before = mask.stat()
    Image.fromarray(np.full((11, 10), 2, np.uint8)).save(mask)
    with mask.open("ab") as file:
        file.truncate(before.st_size)  # padded, the picture ends earlier: the size says nothing
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert mask.stat().st_size == before.st_size
    assert (dataset[3][1] == 2).all() and dataset.decoded() == ["m3"]
    assert (dataset[3][1] == 2).all() and dataset.decoded() == []
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))  # older: also another file
    assert (dataset[3][1] == 2).all() and dataset.decoded() == ["m3"]
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        dataset[3]


def test_how_files_are_read_is_part_of_the_key(made: Callable[..., Counting]) -> None:
    seen = []
    salient = {"task": "salient", "ignore_index": 2}
    for options in ({}, {"reduce_zero_label": True}, salient, {"task": "salient", "soft": True}):
        if "soft" in options:  # labels are no soft masks
            Image.fromarray((made(None)[0][1].numpy() > 0).astype(np.uint8)).save(made(None).samples[0].mask)
        dataset = made("folder", **options)
        seen.append(dataset[0][1])
        assert dataset.decoded() == ["i0", "m0"]
        assert torch.equal(made("folder", **options)[0][1], seen[-1])
    assert torch.equal(seen[1], seen[0] - 1) and seen[3].dtype == torch.float32
    for palette in ([(i, i, i) for i in range(3)], [(2 - i,) * 3 for i in range(3)]):
        dataset = made("folder", palette=palette)
        seen.append(dataset[0][1])
        assert dataset.decoded() == ["i0", "m0"]
    assert torch.equal(seen[-1], 2 - seen[-2])
    assert torch.equal(made("folder", bands=[2])[0][0], made("folder")[0][0][2:])


def test_the_layout_of_arrays_is_part_of_the_key(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", pixels)
    for first, expected in ((False, pixels.transpose(2, 0, 1)), (True, pixels)):
        dataset = PairedFolder(tmp_path / "a.npy", None, channels_first=first, cache=tmp_path / "cache")
        assert np.array_equal(dataset.image(0).numpy(), expected)


SOURCE = """
class Mine(PairedFolder):
    {decorator}
    def _more(labels):
        return labels + {number}

    def read_mask(self, path):
        more = lambda labels: np.{function}(self._more(labels))
        return more(super().read_mask(path)) if path.suffix in {{".png", ".tif", ".bmp", ".gif"}} else None
"""


def defined(**changes: Any) -> type[PairedFolder]:
    """A class of one's own, as it may be edited between two runs."""
    words = {"decorator": "@staticmethod", "number": "np.uint8(1)", "function": "flipud"} | changes
    names = {"PairedFolder": PairedFolder, "np": np, "__name__": "mine"}
    exec(SOURCE.format(**words), names)
    made: Any = names["Mine"]
    return made


def test_the_code_of_ones_own_class_is_part_of_the_key(made: Callable[..., Counting], tmp_path: Path) -> None:
    files = made(None).samples[0]
    plain = made(None)[0][1].numpy()
    changes: list[tuple[dict[str, str], np.ndarray]] = [
        ({}, plain[::-1] + 1),
        ({"number": "np.uint8(2)"}, plain[::-1] + 2),  # a constant of a method that it calls
        ({"function": "fliplr"}, plain[:, ::-1] + 1),  # a name in a lambda
    ]
    for change, expected in changes:
        dataset = defined(**change)(files.image, files.mask, cache=tmp_path / "own")
        assert np.array_equal(dataset.mask(0).numpy(), expected)
    assert len(list((tmp_path / "own").glob("*.bin"))) == len(changes)
    again = defined(number="\\\n np.uint8(1)")(files.image, files.mask, cache=tmp_path / "own")
    assert np.array_equal(again.mask(0).numpy(), changes[0][1])
    assert len(list((tmp_path / "own").glob("*.bin"))) == len(changes)  # on another line it is the same code


def test_that_value_is_the_same_in_every_process() -> None:
    program = """
import runpy, sys
class Mine:
    def read_mask(self, path):
        return (lambda: path.suffix in {".png", ".tif", ".bmp", ".gif"})() or self.twice(path)
    @classmethod
    def twice(cls, path): return path + path
    shape = property(lambda self: {1, "a", None})
print(runpy.run_path(sys.argv[1])["code_of"](Mine, "segzoo"))
"""
    values = set()
    for seed in "12":  # of the order of sets
        command = [sys.executable, "-c", program, str(_code.__file__)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        values.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert len(values) == 1 and len(values.pop()) == 16
    assert code_of(PairedFolder, "segzoo") == ""


def test_only_files_of_ones_own_are_swept(tmp_path: Path) -> None:
    ours, theirs = tmp_path / f".{'0a' * 16}.part", tmp_path / ".mybook.part"
    for path in (ours, theirs):
        path.touch()
        os.utime(path, (0, 0))
    FolderCache(tmp_path)
    assert theirs.exists() and not ours.exists()


def damages(data: bytes) -> Iterator[bytes]:
    yield b""
    yield data[:20]
    yield data[: HEADER.size]
    yield data[:-1]
    yield bytes(len(data))
    yield b"\xff" * len(data)
    yield data[: HEADER.size] + bytes(len(data) - HEADER.size)
    for place in (0, 9, 30, 60, HEADER.size - 1, HEADER.size, len(data) - 1):
        yield data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :]


def test_damaged_entries_are_decoded_again_and_replaced(made: Callable[..., Counting], tmp_path: Path) -> None:
    dataset, plain = made("folder"), made(None)
    list(dataset)
    dataset.decoded()
    entries = sorted((tmp_path / "cache").glob("*.bin"))
    whole = {path: path.read_bytes() for path in entries}
    assert len(entries) == 2 * SIZE
    for broken in zip(*(damages(data) for data in whole.values())):
        for path, data in zip(entries, broken):
            path.write_bytes(data)
        assert same(dataset, plain) and len(dataset.decoded()) == 2 * SIZE
        assert {path: path.read_bytes() for path in entries} == whole
    entries[0].unlink()
    entries[1].write_bytes(whole[entries[2]])  # another file's
    assert same(dataset, plain) and len(dataset.decoded()) == 2


@pytest.mark.parametrize(
    ("context", "workers"), [("fork", 2), ("spawn", 1), pytest.param("spawn", 2, marks=pytest.mark.slow)]
)
def test_workers_share_what_any_of_them_decoded(made: Callable[..., Counting], context: str, workers: int) -> None:
    parts, plain = [made("memory"), made("folder")], made(None)
    loader = DataLoader(ConcatDataset(parts), batch_size=None, num_workers=workers, multiprocessing_context=context)
    expected = [plain[i] for i in range(SIZE)] * 2
    for epoch in range(2):
        for (image, mask), (real_image, real_mask) in zip(loader, expected):
            assert torch.equal(image, real_image) and torch.equal(mask, real_mask)
        for part in parts:
            assert sorted(part.decoded()) == ([] if epoch else sorted(f"{k}{i}" for k in "im" for i in range(SIZE)))
        if context == "spawn":
            break  # starting workers takes seconds; the process they came from knows as much as they
    assert all(same(part, plain) and part.decoded() == [] for part in parts)


def in_child(dataset: Counting) -> int:
    """The exit status of a forked process that reads it all."""
    child = os.fork()
    if not child:
        try:
            list(dataset)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_processes_that_write_at_once(
    made: Callable[..., Counting], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, plain = made(kind), made(None)
    write = _memory._write_at
    monkeypatch.setattr(_memory, "_write_at", lambda *given: (time.sleep(0.001), write(*given)))  # so that they do meet
    children = []
    for seed in range(4):
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                for i in np.random.default_rng(seed // 2).permutation(SIZE):
                    dataset[i][0].fill_(0)
                status = 0 if same(dataset, plain) else 2
            os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    dataset.decoded()
    assert same(dataset, plain) and dataset.decoded() == []
    if isinstance(dataset._cache, MemoryCache):
        assert dataset._cache._seen == 64 + sum(
            HEADER.size + -(-tensor.numel() // 8) * 8 for pair in plain for tensor in pair
        )


def test_a_process_killed_while_it_writes(
    made: Callable[..., Counting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write_at, real_write_whole = _memory._write_at, _cache.write_whole

    def write_half(file: int, place: int, data: bytes | memoryview) -> None:
        real_write_at(file, place, memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
        if memoryview(data).nbytes > HEADER.size:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def write_whole(path: str) -> Iterator[Any]:
        with real_write_whole(path) as file:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
            yield file

    plain = made(None)
    for kind in ("memory", "folder"):
        dataset = made(kind)
        dataset[0]
        with monkeypatch.context() as patch:
            patch.setattr(_memory, "_write_at", write_half)
            patch.setattr(_cache, "write_whole", write_whole)
            assert in_child(dataset) == signal.SIGKILL
        dataset.decoded()
        assert same(dataset, plain) and len(dataset.decoded()) == 2 * SIZE - 2
        assert same(dataset, plain) and dataset.decoded() == []
    (part,) = (tmp_path / "cache").glob(".*.part")
    made("folder")
    assert part.exists()  # somebody may be writing it
    os.utime(part, (0, 0))
    made("folder")
    assert not part.exists()


def memory_files() -> list[str]:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(entry))
    return [link for link in links if "segzoo-cache" in link]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="lists open files as Linux does")
def test_memory_is_freed_with_the_data_set(made: Callable[..., Counting]) -> None:
    gc.collect()
    before, shared, temporary = len(memory_files()), os.listdir("/dev/shm"), os.listdir(tempfile.gettempdir())
    dataset = made("memory")
    item = [tensor.clone() for tensor in dataset[0]]
    first = dataset[0]
    assert len(memory_files()) > before
    assert not [name for name in os.listdir("/dev/shm") if "segzoo" in name and name not in shared]
    assert not [name for name in os.listdir(tempfile.gettempdir()) if "segzoo" in name and name not in temporary]
    del dataset
    gc.collect()
    assert len(memory_files()) == before and all(map(torch.equal, first, item))


def test_without_nameless_files(made: Callable[..., Counting], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    dataset, plain = made("memory"), made(None)
    assert in_child(dataset) == 0
    dataset.decoded()
    assert same(dataset, plain) and dataset.decoded() == []


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_it(made: Callable[..., Counting], kind: str) -> None:
    dataset, plain = made(kind), made(None)
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(same(dataset, plain))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6


def test_full_memory_and_full_disks_end_nothing(
    made: Callable[..., Counting], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, dataset = made(None), made("memory")
    dataset._cache = MemoryCache(limit=2000)
    assert same(dataset, plain) and same(dataset, plain)
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "takes no more entries" in caplog.text
    first = dataset.decoded()
    assert first.count("i0") == 1 and first.count("i7") == 2
    caplog.clear()

    def full(path: str) -> Any:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(_cache, "write_whole", full)
    dataset = made("folder")
    assert same(dataset, plain) and same(dataset, plain)
    assert len(caplog.records) == 1 and "No space left" in caplog.text and len(dataset.decoded()) == 4 * SIZE


def test_a_lock_that_was_held_while_forking_is_not_waited_for(made: Callable[..., Counting]) -> None:
    dataset = made("memory")
    assert isinstance(dataset._cache, MemoryCache)
    with dataset._cache._lock:  # as a thread of the parent may hold it, which the child does not have
        child = os.fork()
        if not child:
            signal.alarm(5)
            with contextlib.suppress(BaseException):
                dataset[0]
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 1000 MiB, 900 of them free, without containers."""
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 1 << 20}[name])
    for name, place in (("_PROC", "proc"), ("_GROUPS", "groups")):
        monkeypatch.setattr(_room, name, tmp_path / place)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {900 << 10} kB\n")
    return tmp_path


def test_half_of_the_memory_or_of_the_tightest_container(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _room.memory_size() == 1000 << 20 and _room.memory_left() == 900 << 20
    assert MemoryCache()._limit == 500 << 20
    inner = machine / "groups/outer/inner"
    inner.mkdir(parents=True)
    (machine / "proc/self/cgroup").write_text("1:name=systemd:/else\n0::/outer/inner\n")
    for group, limit, used, files in ((inner, "max", 0, 0), (inner.parent, 600 << 20, 500 << 20, 300 << 20)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\nactive_file {files}\ninactive_file {1 << 20}\n")
    assert _room.memory_size() == 600 << 20 and _room.memory_left() == 401 << 20
    assert MemoryCache()._limit == 300 << 20
    first = machine / "groups/memory/job"
    first.mkdir(parents=True)
    (machine / "proc/self/cgroup").write_text("4:cpu,memory:/job\n")
    (first / "memory.limit_in_bytes").write_text(str(200 << 20))
    (first / "memory.usage_in_bytes").write_text(str(150 << 20))
    (first / "memory.stat").write_text("total_inactive_file 7\n")
    assert _room.memory_size() == 200 << 20 and _room.memory_left() == (50 << 20) + 7
    monkeypatch.setattr(_room, "address_space_left", lambda: 0)
    monkeypatch.setattr(_memory, "address_space_left", lambda: 64 << 20)
    assert MemoryCache()._limit == 32 << 20


def test_what_others_have_taken_is_seen_while_growing(
    made: Callable[..., Counting], machine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, plain = made("memory"), made(None)
    assert torch.equal(dataset[0][0], plain[0][0]) and not caplog.records
    assert isinstance(dataset._cache, MemoryCache)
    (machine / "proc/meminfo").write_text(f"MemAvailable: {110 << 10} kB\n")
    dataset[1]
    assert not caplog.records  # it was said to suffice
    dataset._cache._looked = 0
    dataset.decoded()
    assert same(dataset, plain) and same(dataset, plain)
    assert (
        len(caplog.records) == 1 and "takes no more entries: it holds 0.0 GiB, and little memory is left" in caplog.text
    )
    assert dataset.decoded().count("i0") == 0 and made("memory")[0][0].shape == plain[0][0].shape


def test_a_limit_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    real, most = mmap.mmap, [3 << 20]

    def limited(file: int, size: int, **options: Any) -> mmap.mmap:
        if size > most[0]:
            raise OSError(12, "Cannot allocate memory")
        return real(file, size, **options)

    monkeypatch.setattr(_memory.mmap, "mmap", limited)
    assert MemoryCache(16 << 20)._limit == 2 << 20
    most[0] = 0
    with pytest.raises(OSError, match=r"cache='memory' cannot map 0 MiB .*ulimit -v.*let cache= be a folder or None"):
        MemoryCache(16 << 20)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5 << 40, 5 << 40))
    assert 4 << 40 < _room.address_space_left() < 5 << 40


def test_folders_that_cannot_be_written(
    made: Callable[..., Counting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"cache is .*file, which is a file: expected a folder or 'memory'"):
        open_cache(tmp_path / "file")
    with pytest.raises(OSError, match="cache: the folder .*inside cannot be made"):
        open_cache(tmp_path / "file" / "inside")
    with pytest.raises(TypeError, match="cache is True, expected 'memory', a folder or None"):
        open_cache(True)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"cache: the folder .* cannot be written: permission denied"):
        made("folder")


@pytest.mark.parametrize("kind", KINDS)
def test_copies(made: Callable[..., Counting], kind: str) -> None:
    dataset, plain = made(kind), made(None)
    list(dataset)
    dataset.decoded()
    for other in (copy.copy(dataset), copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert same(other, plain) and same(dataset, plain) and repr(other) == repr(dataset)
    assert "cache=" in repr(dataset)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.int64]),
    st.sampled_from(["memory", "folder"]),
    st.integers(0, 2**32 - 1),
)
def test_any_array_comes_back(shape: list[int], dtype: Any, kind: str, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (*shape[:-1], shape[-1] * np.dtype(dtype).itemsize), np.uint8)
    array = array.view(dtype)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "ä\udcff.bin"  # a name that is no UTF-8
        file.touch()
        cache: Cache = MemoryCache(1 << 20) if kind == "memory" else FolderCache(place)
        cache.get(file, ("a", 1), lambda _: array.copy())
        found = cache.get(file, ("a", 1), lambda _: pytest.fail("decoded again"))
        assert found.numpy().tobytes() == array.tobytes() and found.shape == array.shape
        assert found.numpy().dtype == array.dtype
        assert cache.get(file, ("a", 2), lambda _: np.zeros(1)).dtype == torch.float64
    entry = Entry(bytes(range(16)), 2**40, -5, array.dtype.str, array.shape, seed)
    assert Entry.unpack(entry.pack()) == entry and Entry.unpack(entry.pack()[1:]) is None
