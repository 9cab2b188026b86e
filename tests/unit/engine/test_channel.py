"""The channel: whatever is sent arrives as it was, in order, however the bytes are cut; a lost peer is noticed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import msgspec
import pytest

from forge.engine.channel import HEADER, LocalChannel, SocketChannel, decode, encode
from forge.engine.link import Link
from forge.engine.request import (
    Abort,
    Accepted,
    Delta,
    Deltas,
    ErrorInfo,
    FromEngine,
    LoadFailed,
    ModelInfo,
    Ready,
    Refused,
    Request,
    Start,
    Stop,
    Submit,
    ToEngine,
    Usage,
)
from forge.errors import BY_CODE, ContextLengthExceeded, ForgeError, QueueFull
from forge.interfaces.sampler import SamplingParams, TokenLogprobs

REQUEST = Request(
    id="r1",
    prompt=[1, 2, 49151],
    sampling=SamplingParams(logit_bias={5: -1.5}, seed=2**64 - 1, logprobs=3, temperature=0.0),
    n=2,
    stop=["\n\n", "終"],
    stop_token_ids=[7],
    priority=-1,
)
MESSAGES: list[ToEngine | FromEngine] = [
    Start({"server": {"port": 8080}, "backend": {"options": {"dtype": "float32"}}}, "/models/a.gguf"),
    Submit(REQUEST),
    Abort("r1"),
    Stop(),
    Ready(ModelInfo("llama", "cpu", 8192, 49152, 100, 16, 1.5)),
    LoadFailed(ErrorInfo("no", "model_file_error")),
    Accepted("r1"),
    Refused("r1", ErrorInfo("full", "queue_full", None, 3)),
    Deltas(
        [
            Delta("r1", 0, "né", [5, 6], [TokenLogprobs(-0.5, ((5, -0.5), (1, -2.0)))] * 2),
            Delta("r1", 1, finish_reason="stop", usage=Usage(3, 4, 0)),
            Delta("r2", 0, finish_reason="error", error=ErrorInfo("broke", "engine_fault")),
        ]
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_arrives_as_it_was_sent(message: ToEngine | FromEngine) -> None:
    frame = encode(message)
    assert HEADER.unpack(frame[: HEADER.size]) == (len(frame) - HEADER.size,)
    assert decode(frame[HEADER.size :]) == message


def test_a_frame_with_wrong_types_is_refused_instead_of_reaching_the_engine() -> None:
    body = msgspec.msgpack.encode({"request": {"id": "r", "prompt": ["not a number"]}})
    with pytest.raises(msgspec.ValidationError, match="prompt"):
        decode(bytes([encode(MESSAGES[1])[HEADER.size]]) + body)


def test_messages_cut_anywhere_arrive_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    sent: list[ToEngine] = [Submit(REQUEST), Abort("a"), Abort("b"), Submit(REQUEST), Stop()]
    data = b"".join(encode(message) for message in sent)
    channel = SocketChannel(theirs)
    received: list[ToEngine] = []
    with ours, theirs:
        for at in range(0, len(data), 7):
            ours.sendall(data[at : at + 7])
            received += channel.receive(wait=False)
        assert received == sent
        assert channel.receive(wait=False) == []


def test_a_request_larger_than_any_socket_buffer_arrives() -> None:
    ours, theirs = socket.socketpair()
    big = Submit(Request("big", list(range(400_000))))
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(encode(big),))
        sender.start()
        assert SocketChannel(theirs).receive(wait=True) == [big]
        sender.join()


async def linked(receive: Callable[[FromEngine], None]) -> tuple[Link, socket.socket]:
    """A link, and the engine's end of it."""
    ours, theirs = socket.socketpair()
    link = Link(receive)
    await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
    return link, theirs


async def test_the_server_gets_whole_messages_of_any_size_until_the_engine_is_gone() -> None:
    received: list[FromEngine] = []
    link, theirs = await linked(received.append)
    large = Deltas([Delta("r", 0, "x" * 300_000), Delta("s", 1, "né", [5])])
    sent: list[FromEngine] = [Accepted("a"), large, Accepted("b"), Deltas([Delta("r", 0, "y")]), large, Accepted("c")]
    data = b"".join(encode(message) for message in sent)
    with theirs:
        for cut in (1, 3, 6, 40, 70_000, 299_990, 300_020, 300_050, 600_000):
            part, data = data[:cut], data[cut:]
            await asyncio.to_thread(theirs.sendall, part)
            await asyncio.sleep(0.001)
        await asyncio.to_thread(theirs.sendall, data)
    await asyncio.wait_for(link.ended, 10)
    assert received == sent


@pytest.mark.parametrize("frame", [b"\0\0\0\2\xffx", encode(Accepted("fault"))], ids=["nonsense", "a fault"])
async def test_a_message_that_cannot_be_taken_ends_the_link_with_the_reason(frame: bytes) -> None:
    taken: list[FromEngine] = []

    def receive(message: FromEngine) -> None:
        if message == Accepted("fault"):
            raise ZeroDivisionError
        taken.append(message)

    link, theirs = await linked(receive)
    with theirs:
        theirs.sendall(encode(Accepted("a")) + frame)
        with pytest.raises((IndexError, ZeroDivisionError)):
            await asyncio.wait_for(link.ended, 10)
        theirs.sendall(encode(Accepted("b")))
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    assert taken in ([Accepted("a")], [])


def test_a_server_that_is_gone_stops_the_engine() -> None:
    ours, theirs = socket.socketpair()
    channel = SocketChannel(theirs)
    with theirs:
        ours.close()
        channel.send(Accepted("r"))
        assert channel.receive(wait=True) == [Stop()]


def test_local_channel_waits_for_the_first_message_and_takes_all_that_are_there() -> None:
    delivered: list[FromEngine] = []
    channel = LocalChannel(delivered.append)
    assert channel.receive(wait=False) == []
    threading.Timer(0.05, channel.put, (Abort("late"),)).start()
    assert channel.receive(wait=True) == [Abort("late")]
    channel.put(Abort("a"))
    channel.put(Abort("b"))
    assert channel.receive(wait=True) == [Abort("a"), Abort("b")]
    channel.send(Accepted("r"))
    assert delivered == [Accepted("r")]


def test_errors_keep_their_class_across_the_process_border() -> None:
    for error in (ContextLengthExceeded("too long", param="prompt"), QueueFull("full", retry_after=7)):
        again = ErrorInfo.of(error).exception()
        assert (type(again), again.message, again.param, again.retry_after) == (
            type(error), error.message, error.param, error.retry_after,
        )  # fmt: skip
    assert type(ErrorInfo.of(ValueError("x")).exception()) is ForgeError
    assert all(cls.code == code for code, cls in BY_CODE.items())
