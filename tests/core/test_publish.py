"""Published files are old or new, never partial; a locked directory has one writer; chunk logs lose but never lie."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from headway.core.disk import Disk
from headway.core.durable import ChunkLog, WriterLock, make_dirs, publish, publish_dir, read_chunks
from headway.core.errors import CapacityError, DurabilityLost, Locked
from headway.core.publish import remove_temporaries
from tests.core.crash_disk import FailingDisk


class WatchedDisk(Disk):
    """Notes the calls, and dies before the `dies_at`-th."""

    def __init__(self, dies_at: int = 1 << 30) -> None:
        self.calls: list[str] = []
        self.dies_at = dies_at

    def _note(self, call: str) -> None:
        if len(self.calls) >= self.dies_at:
            raise KeyboardInterrupt
        self.calls.append(call)

    def create(self, path: str, mode: int = 0o666) -> int:
        self._note("create")
        return super().create(path, mode)

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        self._note("write")
        return super().write(fd, memoryview(data)[:3])  # short writes, as a disk may do

    def sync(self, fd: int) -> None:
        self._note("sync")
        super().sync(fd)

    def sync_path(self, path: str) -> None:
        self.calls.append(f"sync {Path(path).name}")

    def rename(self, source: str, target: str) -> None:
        self._note("rename")
        super().rename(source, target)

    def mkdir(self, path: str) -> None:
        self._note("mkdir")
        super().mkdir(path)


def test_publish_takes_its_four_steps_in_order(tmp_path: Path) -> None:
    disk = WatchedDisk()
    publish(tmp_path / "law.json", b"abcdef", disk=disk)
    assert disk.calls == ["create", "write", "write", "sync", "rename", f"sync {tmp_path.name}"]
    assert (tmp_path / "law.json").read_bytes() == b"abcdef"
    assert [file.name for file in tmp_path.iterdir()] == ["law.json"]


def test_a_cache_skips_the_syncs_only(tmp_path: Path) -> None:
    disk = WatchedDisk()
    publish(tmp_path / "object", b"abc", durable=False, disk=disk)
    assert disk.calls == ["create", "write", "rename"]


def test_interrupted_anywhere_the_old_file_stands_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    path.write_bytes(b"old")
    for dies_at in range(5):
        with pytest.raises(KeyboardInterrupt):
            publish(path, b"newer!", disk=WatchedDisk(dies_at))
        assert path.read_bytes() == b"old"
        assert [file.name for file in tmp_path.iterdir()] == ["law.json"]


def test_a_full_disk_or_a_failed_sync_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    publish(path, b"old")
    full = FailingDisk()
    full.room_bytes = 2
    with pytest.raises(DurabilityLost, match=r"not replaced.*No space left.*old content stands"):
        publish(path, b"newer", disk=full)
    broken = FailingDisk()
    broken.sync_error = errno.EIO
    with pytest.raises(DurabilityLost, match="sync failed"):
        publish(path, b"newer", disk=broken)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["law.json"]


def test_a_writer_function_and_its_errors(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"from a writer")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise ValueError("mine")

    publish(tmp_path / "x", write, mode=0o600)
    assert (tmp_path / "x").read_bytes() == b"from a writer"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="mine"):
        publish(tmp_path / "x", fail)
    assert (tmp_path / "x").read_bytes() == b"from a writer"


def test_symlinks_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "file")
    publish(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"1"


def test_many_publishers_leave_one_whole_file(tmp_path: Path) -> None:
    contents = [bytes([n]) * 5000 for n in range(8)]
    threads = [threading.Thread(target=publish, args=(tmp_path / "x", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_bytes() in contents


def test_directories_are_synced_bottom_up_before_their_name(tmp_path: Path) -> None:
    (tmp_path / "run.tmp" / "sub").mkdir(parents=True)
    (tmp_path / "run.tmp" / "sub" / "b").write_bytes(b"b")
    (tmp_path / "run.tmp" / "a").write_bytes(b"a")
    disk = WatchedDisk()
    publish_dir(tmp_path / "run.tmp", tmp_path / "run", disk=disk)
    assert disk.calls == ["sync b", "sync sub", "sync a", "sync run.tmp", "rename", f"sync {tmp_path.name}"]
    (tmp_path / "again").mkdir()
    with pytest.raises(FileExistsError, match="another name"):
        publish_dir(tmp_path / "again", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError):  # rename() alone would replace it
        publish_dir(tmp_path / "again", tmp_path / "empty")


def test_every_parent_that_got_a_name_is_synced(tmp_path: Path) -> None:
    disk = WatchedDisk()
    make_dirs(tmp_path / "a" / "b" / "c", disk=disk)
    assert disk.calls == ["mkdir", f"sync {tmp_path.name}", "mkdir", "sync a", "mkdir", "sync b"]
    make_dirs(tmp_path / "a" / "b" / "c", disk=disk)
    assert len(disk.calls) == 6


def test_a_lock_names_its_owner_and_ends_with_the_process(tmp_path: Path) -> None:
    program = f"from headway.core.durable import WriterLock; lock = WriterLock({str(tmp_path)!r}); print('held', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(Locked, match=f"process {child.pid}"):
        WriterLock(tmp_path)
    child.kill()
    child.communicate()
    with WriterLock(tmp_path), pytest.raises(Locked, match=f"process {os.getpid()}"):
        WriterLock(tmp_path)
    WriterLock(tmp_path).close()


def test_the_owner_removes_what_killed_writers_left(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    left = tmp_path / f".law.json.{dead}.{'0' * 16}.tmp"
    mine = tmp_path / f".law.json.{os.getpid()}.{'0' * 16}.tmp"
    other = tmp_path / ".law.json.tmp"
    for file in (left, mine, other):
        file.write_bytes(b"")
    with WriterLock(tmp_path):
        assert not left.exists()
    assert mine.exists()
    assert other.exists()
    assert remove_temporaries(tmp_path) == 0


# ---- chunk log -----------------------------------------------------------------------------------------------------------
def test_chunks_come_back_also_over_reopening(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    for part in range(3):
        with ChunkLog(path) as log:
            log.append(b"part %d" % part)
            log.append(b"x" * (part + 1))
    assert list(read_chunks(path)) == [b"part 0", b"x", b"part 1", b"xx", b"part 2", b"xxx"]


def test_any_damage_loses_chunks_but_invents_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    chunks = [b"chunk %d" % n for n in range(4)]
    with ChunkLog(path) as log:
        for chunk in chunks:
            log.append(chunk)
    raw = path.read_bytes()
    for byte in range(len(raw)):
        for variant in (raw[:byte], raw[:byte] + bytes(len(raw) - byte), raw[:byte] + bytes([raw[byte] ^ 0x40]) + raw[byte + 1 :]):
            path.write_bytes(variant)
            found = list(read_chunks(path))
            assert [chunk for chunk in chunks if chunk in found] == found
            if byte >= 16 and len(variant) == len(raw) and variant[byte + 1 :] == raw[byte + 1 :]:
                assert len(found) >= 3  # one flipped byte costs one chunk


def test_a_chunk_log_inside_a_torn_payload_is_no_data(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    with ChunkLog(inner) as log:
        log.append(b"not mine")
    with ChunkLog(outer) as log:
        log.append(b"mine")
        log.append(inner.read_bytes() * 2)
    raw = bytearray(outer.read_bytes())
    raw[-1] ^= 1
    outer.write_bytes(raw)
    assert list(read_chunks(outer)) == [b"mine"]


def test_writing_goes_on_behind_a_torn_chunk(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with ChunkLog(path) as log:
        log.append(b"first")
        log.append(b"torn" * 100)
    path.write_bytes(path.read_bytes()[:-50])
    with ChunkLog(path) as log:
        log.append(b"after")
    assert list(read_chunks(path)) == [b"first", b"after"]


def test_it_opens_even_with_a_damaged_header(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    path.write_bytes(b"garbage that is no header")
    assert list(read_chunks(path)) == []
    with ChunkLog(path) as log:
        log.append(b"new")
    assert list(read_chunks(path)) == [b"new"]
    assert len(list(tmp_path.glob("metrics.damaged-*"))) == 1


def test_a_chunk_is_synced_without_another_append(tmp_path: Path) -> None:
    synced = threading.Event()

    class Signalling(Disk):
        def datasync(self, fd: int) -> None:
            super().datasync(fd)
            synced.set()

    with ChunkLog(tmp_path / "metrics", sync_every_s=0.01, disk=Signalling()) as log:
        log.append(b"x")
        assert synced.wait(30)


def test_chunk_failures_are_final_and_sizes_checked(tmp_path: Path) -> None:
    disk = FailingDisk()
    log = ChunkLog(tmp_path / "metrics", disk=disk)
    with pytest.raises(CapacityError, match="0 bytes"):
        log.append(b"")
    disk.room_bytes = 5
    with pytest.raises(DurabilityLost, match="No space"):
        log.append(b"x" * 100)
    disk.room_bytes = None
    with pytest.raises(DurabilityLost):
        log.append(b"x")
    with pytest.raises(DurabilityLost):
        log.close()
    assert list(read_chunks(tmp_path / "metrics")) == []
