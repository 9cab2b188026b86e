"""Memory that is used again: never while anybody can still see it."""

from __future__ import annotations

import numpy as np
from forge_cpu.arrays import Recycled


def test_memory_is_used_again_only_when_no_array_and_no_view_is_left() -> None:
    recycled = Recycled()
    first = recycled.empty(4, 5)
    first[:] = 1.0
    second = recycled.empty(4, 5)
    second[:] = 2.0
    assert not np.shares_memory(first, second)
    assert (first == 1.0).all()
    view, address = second[1:].T, second.ctypes.data
    del second
    third = recycled.empty(2, 2)
    third[:] = 3.0
    assert (view == 2.0).all()
    assert third.ctypes.data != address
    address = third.ctypes.data
    del third
    assert recycled.empty(2, 2).ctypes.data == address
    assert recycled.empty(1, 3).ctypes.data == address


def test_shapes_are_as_asked_for_whatever_was_there_before() -> None:
    recycled = Recycled()
    for shape in ((2, 3), (64, 1000), (1, 7), (0, 7), (3, 3)):
        array = recycled.empty(*shape)
        assert array.shape == shape
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
