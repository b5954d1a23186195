"""The GGUF reader: reads what the specification says, and answers anything else with a `ModelError` that names the file."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.support import gguf_bytes, smollm2_path, tiny_model

from headway.core.errors import ModelError
from headway.models.gguf import GgufFile

F32 = 0
ROW = np.arange(32, dtype="<f4").tobytes()


def small(tensors: list[tuple[str, int, tuple[int, ...], bytes]] | None = None, **metadata: object) -> bytes:
    return gguf_bytes(
        {key.replace("__", "."): value for key, value in metadata.items()}, [("w", F32, (32,), ROW)] if tensors is None else tensors
    )


def test_metadata_of_every_shape_comes_back() -> None:
    values = {"a": 7, "b": 1.5, "c": True, "d": "naïve", "e": ["x", "", "東京"], "g": [["p"], ["q", "r"]]}
    file = GgufFile.from_bytes(small(**values, f=np.array([-1, 2], np.int32)))
    assert {key: file.metadata[key] for key in values} == values
    np.testing.assert_array_equal(file.metadata["f"], [-1, 2])


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_tensors_are_views_in_row_major_shape(alignment: int) -> None:
    first, second = np.arange(6, dtype="<f4"), np.arange(64, dtype="<f2")
    tensors = [("first", 0, (2, 3), first.tobytes()), ("second", 1, (2, 4, 8), second.tobytes())]
    file = GgufFile.from_bytes(gguf_bytes({"general.alignment": alignment}, tensors, alignment))
    assert file.tensors["first"].shape == (2, 3)
    assert file.tensors["second"].data.shape == (8, 16)
    np.testing.assert_array_equal(file.tensors["first"].dequantise(), first.reshape(2, 3))
    np.testing.assert_array_equal(file.tensors["second"].dequantise(), second.reshape(2, 4, 8).astype(np.float32))
    assert not file.tensors["first"].data.flags.writeable


def test_a_tiny_model_reads_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    oracle = pytest.importorskip("gguf").GGUFReader(tiny_model(tmp_path / "m.gguf", seed=4, head_type="Q8_0"))
    ours = GgufFile(tmp_path / "m.gguf")
    assert [tensor.name for tensor in oracle.tensors] == list(ours.tensors)
    for tensor in oracle.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.ggml_type == tensor.tensor_type and mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert mine.data.tobytes() == np.asarray(tensor.data).tobytes()


def test_closing_lets_views_live() -> None:
    file = GgufFile.from_bytes(small())
    kept = file.tensors["w"].data
    file.close()
    assert kept.tobytes() == ROW
    with pytest.raises(ModelError, match="closed"):
        file.header_sha256()


def tensor_entry(name: bytes, sizes: list[int], kind: int, offset: int) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def with_tensors(*entries: bytes, data: int = 4096) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, len(entries), 0) + b"".join(entries) + bytes(data)


HOSTILE = {
    "empty": (b"", "only 0 bytes"),
    "short": (b"GGUF\x03", "only 5 bytes"),
    "magic": (b"GGML" + bytes(40), "it starts with"),
    "version": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0) + bytes(64), "version 9"),
    "counts": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63) + bytes(64), "cannot fit"),
    "long key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1) + bytes(64), "at most 65535"),
    "key twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + (struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 0, 1)) * 2 + bytes(64),
        "twice",
    ),
    "type": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77) + bytes(64), "unknown type 77"),
    "string": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IQ", 8, 2**62) + bytes(64), "bytes, 64 are left"),
    "array": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 10, 2**61) + bytes(64), "bytes, 64 are left"),
    "strings": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**60) + bytes(64), "more than the file"),
    "nested": (
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + bytes(64),
        "nests arrays",
    ),
    "utf-8": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"\xff" + bytes(64), "not UTF-8"),
    "no dimensions": (with_tensors(tensor_entry(b"w", [], 0, 0)), "0 dimensions"),
    "dimensions": (with_tensors(tensor_entry(b"w", [1] * 5, 0, 0)), "5 dimensions"),
    "overflow": (with_tensors(tensor_entry(b"w", [32, 2**63, 2], 0, 0)), "behind the file"),
    "empty shape": (with_tensors(tensor_entry(b"w", [0, 4], 0, 0)), "empty shape"),
    "block": (with_tensors(tensor_entry(b"w", [33], 3, 0)), "no multiple of the block of 32"),
    "unreadable": (with_tensors(tensor_entry(b"w", [256], 39, 0)), "MXFP4"),
    "unaligned": (with_tensors(tensor_entry(b"w", [32], 0, 5)), "alignment"),
    "offset": (with_tensors(tensor_entry(b"w", [32], 0, 2**63)), "behind the file"),
    "tensor twice": (with_tensors(tensor_entry(b"w", [8], 0, 0), tensor_entry(b"w", [8], 0, 32)), "twice"),
    "overlap": (with_tensors(tensor_entry(b"v", [32], 0, 0), tensor_entry(b"w", [32], 0, 32)), "overlap"),
    "zero alignment": (gguf_bytes({"general.alignment": 0}, [("w", 0, (32,), ROW)]), "alignment"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(what: str) -> None:
    data, reason = HOSTILE[what]
    with pytest.raises(ModelError, match=reason):
        GgufFile.from_bytes(data, "evil.gguf")


def test_a_missing_file_and_a_directory_say_so(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            GgufFile(path)


def test_every_truncation_is_refused() -> None:
    whole = small(general__name="x", tokens=["a", "bc"], types=np.array([1, 2], np.int32))
    for length in range(len(whole)):
        with pytest.raises(ModelError):
            GgufFile.from_bytes(whole[:length])


def mutate(seed: bytes, rng: np.random.Generator) -> bytes:
    """One to four edits: a byte, an interesting 64-bit number, a removed or repeated stretch."""
    data = bytearray(seed)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(data) - 8))
        kind = rng.integers(0, 4)
        if kind == 0:
            data[at] = int(rng.integers(0, 256))
        elif kind == 1:
            interesting = [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, len(data), len(data) - at, 9, 8]
            data[at : at + 8] = struct.pack("<Q", interesting[int(rng.integers(0, len(interesting)))])
        elif kind == 2 and len(data) > 128:
            del data[at : at + int(rng.integers(1, 16))]
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 32))]
    return bytes(data)


def fuzz(count: int) -> tuple[int, int]:
    """(refused, read) of `count` mutated files; anything but a `ModelError` fails the test."""
    seed = small(
        tensors=[("a", 0, (2, 32), ROW * 2), ("b", 3, (2, 32), bytes(40)), ("c", 8, (1, 64), bytes(68))],
        general__architecture="llama",
        n=3,
        x=0.5,
        flag=True,
        tokens=["one", "two", "three"],
        nested=[["p"], ["q"]],
        types=np.array([1, 1, 3], np.int32),
    )
    rng = np.random.default_rng(20)
    refused = read = 0
    for _ in range(count):
        try:
            file = GgufFile.from_bytes(mutate(seed, rng))
        except ModelError:
            refused += 1
        else:
            read += 1
            with np.errstate(all="ignore"):
                for tensor in file.tensors.values():
                    tensor.dequantise()
    return refused, read


def test_fuzzed_files_never_crash_or_allocate_much() -> None:
    tracemalloc.start()
    try:
        refused, read = fuzz(4_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused > 1_000 and read > 100  # the mutations reach past the first check, and are not all harmless
    assert peak_bytes < 4 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_fuzzed_files_never_crash() -> None:
    refused, read = fuzz(1_000_000)
    assert refused + read == 1_000_000


@pytest.mark.model
def test_smollm2_is_what_its_card_says() -> None:
    file = GgufFile(smollm2_path())
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.data.nbytes
    assert len(file.metadata) == 33 and len(file.tensors) == 272 and file.header_bytes == 1_785_664
    assert sizes == {"Q4_1": 66_355_200, "F32": 140_544, "Q8_0": 30_081_024}
