"""The step program on random tiny models: right against float64, a row's bits independent of what is beside it."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.programs import Built, Span, batch, build, logits_of
from tests.support import tiny_model

from headway.core.errors import CapacityError, ModelError
from headway.engine.program import FUSED_ROWS, READ_CHUNK_BYTES
from headway.engine.weights import PackedWeights
from headway.kernels.cpu import isa, layout
from headway.kernels.reference import llama_forward, load_weights, log_softmax
from headway.models.model import open_model

LEVELS = [level for level in isa.LEVELS if isa.host_supports(level)]
BOUNDS = {"exact": 1e-4, "fast": 5e-3}  # mean KL to float32, nats (docs/engine.md)
SHAPES = {
    "gqa": {"heads": 6, "kv_heads": 2, "head_dim": 32},
    "mha": {"heads": 2, "kv_heads": 2, "head_dim": 48},
    "wide group": {"heads": 8, "kv_heads": 1, "head_dim": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def tiny(folder: Path, name: str = "model", **sizes: object) -> Path:
    path = folder / f"{name}.gguf"
    if not path.exists():
        tiny_model(path, seed=5, **sizes)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize(
    ("weight_type", "accuracy"),
    [("Q4_1", "exact"), ("Q8_0", "exact"), ("F32", "exact"), ("F16", "exact"), ("BF16", "exact"), ("Q4_1", "fast"), ("Q8_0", "fast")],
)
def test_log_probabilities_equal_the_reference(folder: Path, weight_type: str, accuracy: str, level: isa.Isa) -> None:
    path = tiny(folder, weight_type, weight_type=weight_type, **SHAPES["gqa"])
    built = build(path, accuracy=accuracy, level=level)  # type: ignore[arg-type]
    ids = np.random.default_rng(0).integers(3, 300, 70).tolist()
    got = log_softmax(logits_of(built, ids, [len(ids)], np.arange(64)[None]))
    want = log_softmax(llama_forward(built.model.config, load_weights(built.model), ids))
    built.close()
    divergence = (np.exp(want) * (want - got)).sum(-1)
    assert divergence.mean() <= BOUNDS[accuracy]


@pytest.mark.parametrize("shape", SHAPES)
def test_head_shapes(folder: Path, shape: str) -> None:
    built = build(tiny(folder, shape.replace(" ", "-"), weight_type="F32", **SHAPES[shape]), accuracy="exact")
    ids = np.random.default_rng(1).integers(3, 300, 40).tolist()
    got = log_softmax(logits_of(built, ids, [40], np.arange(64)[None]))
    want = log_softmax(llama_forward(built.model.config, load_weights(built.model), ids))
    built.close()
    assert (np.exp(want) * (want - got)).sum(-1).mean() <= BOUNDS["exact"]


def test_frequency_factors_of_the_file_are_applied(folder: Path) -> None:
    factors = np.linspace(1.0, 8.0, 16, dtype=np.float32)
    path = tiny(folder, "factors", weight_type="F32", rope_freqs=factors, **SHAPES["gqa"])
    built = build(path, accuracy="exact")
    ids = np.random.default_rng(2).integers(3, 300, 40).tolist()
    got = log_softmax(logits_of(built, ids, [40], np.arange(64)[None]))
    weights = load_weights(built.model)
    want = log_softmax(llama_forward(built.model.config, weights, ids))
    plain = log_softmax(llama_forward(built.model.config, {k: v for k, v in weights.items() if k != "rope_freqs.weight"}, ids))
    built.close()
    assert (np.exp(want) * (want - got)).sum(-1).mean() <= BOUNDS["exact"] < (np.exp(want) * (want - plain)).sum(-1).mean()


def test_only_fast_gives_prompt_rows_fewer_planes(folder: Path) -> None:
    ids = np.random.default_rng(3).integers(3, 300, 40).tolist()
    equal = {}
    for accuracy in ("exact", "fast"):
        built = build(tiny(folder, "Q4_1", weight_type="Q4_1", **SHAPES["gqa"]), accuracy=accuracy)  # type: ignore[arg-type]
        prompt, generated = (logits_of(built, ids, [40], np.arange(64)[None], border) for border in (None, 0))
        equal[accuracy] = bool((prompt == generated).all())
        built.close()
    assert equal == {"exact": True, "fast": False}


def test_the_kv_type_may_be_chosen_apart_from_the_mode(folder: Path) -> None:
    ids = np.random.default_rng(4).integers(3, 300, 40).tolist()
    got = {}
    for kv_dtype in (None, "bf16", "f16"):
        built = build(tiny(folder, "Q4_1", weight_type="Q4_1", **SHAPES["gqa"]), accuracy="fast", kv_dtype=kv_dtype)  # type: ignore[arg-type]
        got[kv_dtype] = built.program.kv_dtype, logits_of(built, ids, [40], np.arange(64)[None])
        built.close()
    assert [kind for kind, _ in got.values()] == ["bf16", "bf16", "f16"]
    assert (got[None][1] == got["bf16"][1]).all() and (got["f16"][1] != got["bf16"][1]).any()


@pytest.fixture(scope="module", params=["exact", "fast"])
def pair(folder: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, Built]]:
    """The same model with one thread and 16-token pages, and with three threads and 32-token pages."""
    path = tiny(folder, "pair", weight_type="Q4_1", head_type="Q8_0", context_tokens=2048, **SHAPES["gqa"])
    made = {
        "one": build(path, accuracy=request.param, threads=1, pages=160),
        "three": build(path, accuracy=request.param, threads=3, pages=80, page_tokens=32),
    }
    yield made
    for built in made.values():
        built.close()


LENGTH = 1100  # crosses two splits of 512 tokens


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_bits_do_not_depend_on_chunks_threads_or_page_size(pair: dict[str, Built], data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 3)))
    length = data.draw(st.sampled_from([33, 130, LENGTH]))
    ids = rng.integers(3, 300, length).tolist()
    border = data.draw(st.integers(1, length))

    def chunks() -> list[int]:
        sizes = []
        while sum(sizes) < length:
            sizes.append(min(data.draw(st.sampled_from([16, 40, 64, 511, 512])), length - sum(sizes)))
        return sizes

    one = logits_of(pair["one"], ids, chunks(), rng.permutation(160)[None], border)
    three = logits_of(pair["three"], ids, chunks(), rng.permutation(80)[None], border)
    assert (one == three).all()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_bits_do_not_depend_on_the_batch(pair: dict[str, Built], data: st.DataObject) -> None:
    built = pair["three"]
    rng = np.random.default_rng(data.draw(st.integers(0, 5)))
    lengths = data.draw(st.lists(st.integers(1, 90), min_size=2, max_size=6))
    texts = [rng.integers(3, 300, n + 1).tolist() for n in lengths]
    pages = rng.permutation(80)
    tables = np.stack([np.resize(pages[12 * i : 12 * i + 12], 12) for i in range(len(texts))])
    alone = []
    for i, ids in enumerate(texts):
        table = tables[i : i + 1]
        before = logits_of(built, ids[:-1], [len(ids) - 1], table)
        made, _ = batch([Span(0, len(ids) - 1, ids[-1:], generated=True)], table)
        built.program.execute(made)
        alone.append((before, built.program.logits[0].copy()))
    made, rows = batch([Span(i, 0, ids[:-1]) for i, ids in enumerate(texts)], tables)
    built.program.execute(made)
    for (before, _), mine in zip(alone, rows, strict=True):
        assert (built.program.logits[mine] == before).all()
    # one more token each, beside a prompt that starts over
    spans = [Span(i, len(ids) - 1, ids[-1:], generated=True) for i, ids in enumerate(texts[1:], 1)]
    made, rows = batch([*spans, Span(0, 0, texts[0][:-1])], tables)
    built.program.execute(made)
    for (_, last), mine in zip(alone[1:], rows, strict=False):
        assert (built.program.logits[mine[0]] == last).all()
    assert (built.program.logits[rows[-1]] == alone[0][0]).all()


def test_bits_do_not_depend_on_a_batch_so_small_that_each_thread_prepares_it(pair: dict[str, Built]) -> None:
    """At most FUSED_ROWS rows, of both classes."""
    built = pair["three"]
    ids = np.random.default_rng(7).integers(3, 300, 20).tolist()
    tables = np.arange(8).reshape(2, 4)
    whole = logits_of(built, ids, [20], tables[:1], 19)
    start = logits_of(built, ids[:3], [3], tables[1:])
    logits_of(built, ids[:19], [19], tables[:1])
    made, rows = batch([Span(0, 19, ids[19:], generated=True), Span(1, 0, ids[:3])], tables)
    assert len(made.token_ids) <= FUSED_ROWS
    built.program.execute(made)
    assert (built.program.logits[rows[0]] == whole[19:]).all() and (built.program.logits[rows[1]] == start).all()


def test_a_long_row_split_over_threads_gives_the_same_bits_every_time(pair: dict[str, Built]) -> None:
    built = pair["three"]
    ids = np.random.default_rng(3).integers(3, 300, LENGTH).tolist()
    table = np.arange(80)[None]
    whole = logits_of(built, ids, [512, 512, LENGTH - 1024], table, LENGTH - 1)
    made, _ = batch([Span(0, LENGTH - 1, ids[-1:], generated=True)], table)
    for _ in range(50):
        built.program.execute(made)
        assert (built.program.logits[0] == whole[-1]).all()


def test_tokens_one_by_one_have_the_bits_of_the_same_rows_in_one_piece(pair: dict[str, Built]) -> None:
    """Past 512 tokens a row alone is split over threads and folded; rows of one piece are not. Neither may leave a trace for the next."""
    ids = np.random.default_rng(9).integers(3, 300, LENGTH).tolist()
    for built, pages in ((pair["one"], 160), (pair["three"], 80)):
        table = np.arange(pages)[None]
        together = logits_of(built, ids, [512, 512, LENGTH - 1024], table, 1024)
        one_by_one = logits_of(built, ids, [512, 512, *[1] * (LENGTH - 1024)], table, 1024)
        assert (together == one_by_one).all()


def test_what_a_page_held_before_does_not_matter(pair: dict[str, Built]) -> None:
    built = pair["one"]
    ids = np.random.default_rng(4).integers(3, 300, 21).tolist()
    table = np.array([[7, 9]])
    want = logits_of(built, ids, [21], table)
    built.program.pool._pages[:, :, 7:10] = 0xFF  # NaN in both 16-bit types
    assert (logits_of(built, ids, [21], table) == want).all()
    built.program.pool._pages[:] = 0


def test_a_copied_page_is_the_page(pair: dict[str, Built]) -> None:
    built = pair["one"]
    ids = np.random.default_rng(6).integers(3, 300, 17).tolist()
    want = logits_of(built, ids, [16, 1], np.array([[3, 4]]))[-1]
    built.program.copy_page(3, 11)
    made, _ = batch([Span(0, 16, ids[16:])], np.array([[11, 5]]))
    built.program.execute(made)
    assert (built.program.logits[0] == want).all()


def test_probes_beside_iterations_leave_the_models_block_alone(pair: dict[str, Built], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is late for a probe reads the probe's block, whatever the model's block has become meanwhile."""
    built = pair["three"]
    program, team = built.program, built.team
    ids = np.random.default_rng(8).integers(3, 300, 60).tolist()
    table = np.arange(80)[None]
    want = logits_of(built, ids, [60], table)
    blocks: list[int] = []
    run = team.run
    monkeypatch.setattr(team, "run", lambda block: (blocks.append(block), run(block))[1])
    idle, cursors = program._block.copy(), program._controls.copy()
    program.meet()
    program.read_weights()
    assert (program._block == idle).all() and (program._controls == cursors).all()
    assert len({*blocks, program._block.ctypes.data}) == 2  # the probes share one, which is not the model's
    probe = program._probe.copy()
    for _ in range(30):
        assert (logits_of(built, ids, [60], table) == want).all()
        program.meet()
        program.read_weights()
    assert (
        program._probe[[layout.P_N_OPS, layout.P_SEGMENTS, layout.P_CONTROLS]]
        == probe[[layout.P_N_OPS, layout.P_SEGMENTS, layout.P_CONTROLS]]
    ).all()


def test_read_weights_reads_all_of_them_in_whole_chunks(folder: Path) -> None:
    """What is timed as the read limit covers the weights from the first matrix to the head, but for less than a chunk."""
    built = build(tiny(folder, "wide", width=256, ffn=768, heads=4, kv_heads=2, head_dim=64), threads=2)
    program, weights = built.program, built.program.weights
    matrices = [m for layer in weights.layers for m in (*layer.qkv, layer.output, layer.gate_up, layer.down)]
    n_bytes = sum(m.n_bytes for m in [*matrices, weights.head])
    program.profile_us()
    read_bytes = program.read_weights()
    assert n_bytes - READ_CHUNK_BYTES < read_bytes and read_bytes % READ_CHUNK_BYTES == 0
    assert set(program.profile_us()) == {"read"}
    program.meet()
    assert set(program.profile_us()) == {"empty"}
    built.close()


def test_a_batch_over_the_limits_is_refused(pair: dict[str, Built]) -> None:
    made, _ = batch([Span(0, 0, [5] * 600)], np.arange(80)[None])
    with pytest.raises(CapacityError, match="600 rows"):
        pair["three"].program.execute(made)
    made, _ = batch([Span(0, i, [5]) for i in range(65)], np.arange(80)[None])
    with pytest.raises(CapacityError, match="65 segments"):
        pair["three"].program.execute(made)


def test_a_type_without_a_kernel_is_named(folder: Path) -> None:
    model = open_model(tiny(folder, "q5", weight_type="Q5_0"))
    with pytest.raises(ModelError, match="Q4_1"):
        PackedWeights(model.config, model.file.tensors)


def test_cpu_inside_execute_is_that_of_the_caller_and_of_all_helpers(folder):
    built = build(tiny(folder, "clocked", **SHAPES["gqa"]), threads=2, pages=8)
    try:
        work, _ = batch([Span(0, 0, range(60))], np.arange(8, dtype=np.int32).reshape(1, 8))
        told_s, before_s, wall_s = built.team.cpu_s(), time.process_time(), time.monotonic()
        for _ in range(50):
            built.program.execute(work)
        wall_s, spent_s = time.monotonic() - wall_s, time.process_time() - before_s
        inside_s = built.team.cpu_s() - told_s
        assert 0.5 * spent_s < inside_s <= spent_s + 0.01 and inside_s <= 2 * wall_s + 0.01
        idle_s = built.team.cpu_s()
        sum(range(1_000_000))  # work of the caller's that is no iteration
        assert built.team.cpu_s() - idle_s < 0.005
    finally:
        built.team.close()
    assert built.team.cpu_s() >= told_s + inside_s
