"""What is brought to the device for a batch: planes as they are, at aligned places, told by their addresses there."""

import itertools

import numpy as np
import pytest
from gpu_on_host import on_device
from host_device import HostDevice
from hypothesis import given, settings
from hypothesis import strategies as st
from random_frames import frames, make_frame

from retinastream.kernels.cuda_faces import PLACED
from retinastream.kernels.descriptors import FRAME_DESCRIPTOR
from retinastream.kernels.sizing import SizePolicy
from retinastream.pipeline.gpu_staging import ALIGNMENT, Parameters, Staging
from retinastream.types import PIXEL_FORMATS


def placements_of(frame, size="native"):
    return SizePolicy.parse(size).placements(*frame.upright_size, 32)


def described(staging, batch, count, number=0):
    """The descriptors and placed structures that were written for a batch."""
    parameters = Parameters(batch, count)
    records = np.ascontiguousarray(parameters.descriptors(staging.pinned, number)).view(FRAME_DESCRIPTOR)
    placed = np.ascontiguousarray(parameters.placed(staging.pinned)).view(PLACED)
    return records.reshape(batch), placed.reshape(batch)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(frames(), min_size=1, max_size=4))
def test_every_plane_arrives_as_it_is(batch):
    """Wherever it lay and whatever its pitch; the block is copied as the slot copies it."""
    device = HostDevice()
    with device.current():
        stream = device.stream()
        staging = Staging(device, stream)
        staged = staging.fill(batch, placements_of(batch[0]))
        device.copy_in(staging.block[: staged.nbytes], staging.pinned[: staged.nbytes], stream)
        stream.synchronize()
        block = np.asarray(staging.block)
    records, _ = described(staging, len(batch), 1)
    assert staged.on_device == []
    for record, frame in zip(records, batch, strict=True):
        for number, plane in enumerate(frame.planes):
            address, pitch = int(record["planes"][number]), int(record["pitches"][number])
            start = address - block.ctypes.data
            assert address % ALIGNMENT == 0
            assert len(plane) == 1 or pitch % ALIGNMENT == 0
            row_bytes = int(np.prod(plane.shape[1:])) * plane.itemsize
            rows = block[start : start + len(plane) * pitch].reshape(len(plane), pitch)[:, :row_bytes]
            np.testing.assert_array_equal(np.ascontiguousarray(rows).view(plane.dtype).reshape(plane.shape), plane)


def test_planes_do_not_overlap_each_other_or_the_parameters():
    batch = [make_frame(name, 65, 33, seed=seed) for seed, name in enumerate(sorted(PIXEL_FORMATS))]
    device = HostDevice()
    with device.current():
        staging = Staging(device, device.stream())
        staged = staging.fill(batch, placements_of(batch[0]))
        first = staging.block.ctypes.data
    records, _ = described(staging, len(batch), 1)
    taken = [(first, first + Parameters(len(batch), 1).nbytes)]
    for record, frame in zip(records, batch, strict=True):
        for number, plane in enumerate(frame.planes):
            start = int(record["planes"][number])
            taken.append((start, start + len(plane) * int(record["pitches"][number])))
    taken.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    assert taken[-1][1] == first + staged.nbytes


def test_planes_on_the_device_are_told_by_their_own_addresses_and_not_copied():
    device = HostDevice()
    here = make_frame("nv12", 320, 192)
    there = on_device(here, device)
    with device.current():
        staging = Staging(device, device.stream())
        staged = staging.fill([here, there], placements_of(here))
    records, _ = described(staging, 2, 1)
    assert [int(v) for v in records[1]["planes"][:2]] == [plane.address for plane in there.planes]
    assert [int(v) for v in records[1]["pitches"][:2]] == [plane.pitch for plane in there.planes]
    assert staged.on_device == [there]
    assert staged.nbytes == Parameters(2, 1).nbytes + (192 + 96) * 512  # a row of 320 bytes takes 512


def test_every_pass_has_descriptors_of_its_own_and_all_share_what_maps_back():
    device = HostDevice()
    frame = make_frame("nv12", 1000, 300)
    placements = placements_of(frame, "pyramid")
    with device.current():
        staging = Staging(device, device.stream())
        staging.fill([frame, frame], placements)
    widths = [[int(v) for v in described(staging, 2, 2, number)[0]["placed_width"]] for number in range(2)]
    assert widths == [[1000, 1000], [640, 640]]
    _, placed = described(staging, 2, 2)
    assert placed["item"][:, :2].tolist() == [[0, 0], [1, 1]]
    np.testing.assert_allclose(placed["scale_x"][:, 1], 0.64)


@pytest.mark.parametrize("larger_first", [True, False])
def test_the_block_moves_for_a_larger_batch_only(larger_first):
    device = HostDevice()
    batches = [[make_frame("nv12", 64, 32)], [make_frame("nv12", 640, 320)]]
    with device.current():
        staging, blocks = Staging(device, device.stream()), []
        for batch in batches[::-1] if larger_first else batches:
            staging.fill(batch, placements_of(batch[0]))
            blocks.append(staging.block)
    assert (blocks[0] is blocks[1]) == larger_first
