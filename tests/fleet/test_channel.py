"""The channel: whole frames or nothing, numbered, never blocking."""

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.core.slo import Slo
from headway.engine import channel as channels
from headway.engine.channel import HEADER, EngineSide, FrameReader, FrameWriter, FrontSide, PeerGone, pair
from headway.engine.frames import CONTROL, KIND_OF, ChannelError, Outputs, Stop, WantView, encode, encode_tape, read_tape
from headway.engine.wire import Output, Sampling, Submit
from headway.scheduling.messages import Abort, Amend, Dispatch, Iteration, LawUpdate, Pace, Result
from headway.scheduling.messages import Submit as ViewSubmit

SUBMIT = Submit(7, "m", "generate", [1, 2, 3], Sampling(5, temperature=0.0))
DISPATCH = Dispatch(7, "engine-0", 0, Slo(1.0, 0.05), 123)


def test_messages_arrive_equal_in_order_and_numbered_per_family():
    front, engine = pair()
    FrameWriter(front).send(SUBMIT, DISPATCH, Abort(7, "engine-0", "gone"), Stop())
    assert EngineSide(engine).drain() == [(1, SUBMIT), (1, DISPATCH), (2, Abort(7, "engine-0", "gone")), (3, Stop())]


@given(cuts=st.lists(st.integers(1, 60), max_size=12))
def test_frames_may_arrive_in_any_pieces(cuts):
    source, sink = pair()
    FrameWriter(source).send(SUBMIT, DISPATCH, Outputs([Output(7, [4])]))
    whole = sink.recv(1 << 16)
    left, right = pair()
    reader, received = FrameReader(right), []
    for cut in (*cuts, len(whole)):
        piece, whole = whole[:cut], whole[cut:]
        left.sendall(piece)
        received += [message for _, message in reader.read()]
    assert received == [SUBMIT, DISPATCH, Outputs([Output(7, [4])])]


@pytest.mark.parametrize(
    "raw",
    [
        HEADER.pack(0, CONTROL, KIND_OF[Stop][0], 0, 2),  # number 1 is missing
        HEADER.pack(0, 9, KIND_OF[Stop][0], 0, 1),  # no such family
        HEADER.pack(1 << 31, CONTROL, KIND_OF[Stop][0], 0, 1),  # absurd length
        HEADER.pack(1, CONTROL, 200, 0, 1) + b"\xc0",  # no such kind
        HEADER.pack(1, CONTROL, KIND_OF[Abort][0], 0, 1) + b"\xc1",  # not msgpack
    ],
)
def test_what_is_not_a_frame_is_refused(raw):
    left, right = pair()
    left.sendall(raw)
    with pytest.raises(ChannelError):
        FrameReader(right).read()


def test_end_of_file_is_peer_gone():
    left, right = pair()
    left.close()
    with pytest.raises(PeerGone):
        EngineSide(right).drain()


def test_the_engine_pauses_while_the_front_does_not_read_and_gives_up_in_the_end(monkeypatch):
    front, engine = pair()
    side = EngineSide(engine)
    assert not side.paused()
    side.send(Outputs([Output(1, list(range(1 << 22)))]))
    side.send(Outputs([Output(1, list(range(1 << 22)))]))
    assert side.paused()
    monkeypatch.setattr(channels, "PAUSE_LIMIT_S", -1.0)
    with pytest.raises(PeerGone):
        side.paused()
    monkeypatch.setattr(channels, "PAUSE_LIMIT_S", 30.0)
    reader, received = FrameReader(front), []
    while len(received) < 2:
        received += reader.read()
        side.drain()
    assert not side.paused()
    assert [message.outputs[0].token_ids[-1] for _, message in received] == [(1 << 22) - 1] * 2


async def test_the_front_never_blocks_and_says_busy_then_delivers_everything():
    front, engine = pair()
    gone = []
    side = FrontSide(front, asyncio.get_running_loop(), lambda *_: None, gone.append)
    big = Submit(1, "m", "generate", list(range(1 << 22)), Sampling(1))
    side.send(big)
    side.send(big)
    assert side.busy
    reader, received = FrameReader(engine), []
    while len(received) < 2:
        received += reader.read()
        await asyncio.sleep(0)
    assert received == [(1, big), (2, big)] and not side.busy and not gone
    engine.close()
    side.send(WantView())
    await asyncio.sleep(0.01)
    assert len(gone) == 1
    side.send(WantView())  # and silence afterwards


def test_a_tape_reads_back_as_what_happened():
    changes = [
        ViewSubmit(1, "m", "generate", Slo(), 5, 10, 0, 3, 0),
        Amend(1, Slo(None, 1.0), True),
        Pace("engine-0", 5),
        LawUpdate("m/generate", {"a": 1.5}),
        Abort(1, "engine-0", "x"),
        Result(1, 5, ((1, 3),), (), (), (), (), {"m": (3, 4)}),
    ]
    iteration = Iteration(((1, 1),), (), (), 5, 6)
    tape = encode_tape([*((10 + i, change) for i, change in enumerate(changes)), (99, iteration)])
    back = read_tape(tape)
    assert [(at, change) for at, change, _ in back[:-1]] == [(10 + i, change) for i, change in enumerate(changes)]
    assert back[-1] == (99, None, encode(iteration))


def test_the_engine_end_is_not_inherited_by_accident():
    front, engine = pair()
    assert not front.get_inheritable() and not engine.get_inheritable()
    assert isinstance(front, socket.socket) and front.getblocking() is False
