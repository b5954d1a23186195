"""Crash states of programs that store through mappings, with images; and the user's description of their types."""

import mmap
from pathlib import Path

import pytest

from headway.core.errors import ConfigError
from headway.crashtest.operations import Trace
from headway.crashtest.pathfinder import mmio
from tests.crashtest.recorder import Recorder

ADDRESS = 0x7F0000000000
MS_SYNC = 4
REGIONS = """
[type.entry]
size = 128
fields = [{offset = 0, size = 8, name = "value"}, {offset = 64, size = 8, name = "valid"}]
[[region]]
type = "entry"
address = 0x7F0000000000
[[region]]
type = "entry"
address = 0x7F0000000080
"""


def entries(*, msync: bool) -> Trace:
    """Two entries in a mapped file: a value, then the flag that says it is valid, with or without msync between them."""
    r = Recorder({"pool": bytes(4096)})
    fd = r.open("pool", 2)
    r.add("mmap", ("pool",), fd=fd, address=ADDRESS, length=4096, offset=0, flags=mmap.MAP_SHARED, mode=3)
    for number in range(2):
        for offset, text in ((0, b"value..."), (64, b"valid...")):
            at = 128 * number + offset
            r.add("store", ("pool",), address=ADDRESS + at, offset=at, length=8, payload=text)
            if msync:
                r.add("msync", ("pool",), address=ADDRESS, length=4096, flags=MS_SYNC)
    return r.trace()


def broken(files: dict[str, bytes]) -> bool:
    pool = files["pool"]
    return any(pool[at + 64] and not pool[at] for at in (0, 128))


@pytest.mark.parametrize("msync", [True, False])
def test_an_entry_without_its_value_shows_only_without_msync(tmp_path: Path, msync: bool) -> None:
    (tmp_path / "types.toml").write_text(REGIONS)
    memory = mmio.Memory(entries(msync=msync), mmio.read_regions(tmp_path / "types.toml"))
    assert [(test.name, len(test.members)) for test in memory.tests] == [("entry", 2)]
    states = list(memory.states(memory.tests[0]))
    assert any(broken(state.tree.files()) for state in states) == (not msync)
    assert any(state.tree.files()["pool"][64:69] == b"valid" for state in states)


def test_without_types_every_address_is_a_scalar() -> None:
    memory = mmio.Memory(entries(msync=True))
    assert [len(test.members) for test in memory.tests] == [4]  # all written by the same (unknown) stack
    assert memory.tests[0].name == f"scalar {ADDRESS:#x}"


@pytest.mark.parametrize("text", ["[type.e]\nsize = 8", "[[region]]\ntype = 'e'\naddress = 0", "type = 3", "["])
def test_what_is_wrong_with_a_regions_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "types.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"types\.toml"):
        mmio.read_regions(tmp_path / "types.toml")
