"""CUDA sources executed on the host do what a GPU would, and a sanitizer finds the faults planted in them."""

import numpy as np
import pytest
from cuda_host import LaunchError, SanitizerReport, check_all_written, in_sanitizer, load
from numpy.testing import assert_array_equal

SOURCE = __file__.replace("test_cuda_on_host.py", "on_host.cu")
PATTERN = 0xA5A5A5A5


@pytest.fixture(params=["plain", pytest.param("ucontext", marks=pytest.mark.slow)])
def kernels(request):
    return load(SOURCE, request.param)


def numbers(count, seed=0):
    return np.random.default_rng(seed).integers(0, 100, count).astype(np.int32)


@pytest.mark.parametrize("seed", [0, 5])
def test_every_thread_of_every_block_runs_once_and_knows_its_place(kernels, seed):
    grid, block = (3, 2, 2), (5, 4, 3)
    out = np.empty((12 * 60, 6), np.int32)
    check_all_written(lambda: kernels.launch("where", grid, block, [out], seed=seed), out)
    expected = [(i, j, k, x, y, z) for k, j, i, z, y, x in np.ndindex(2, 2, 3, 3, 4, 5)]
    assert_array_equal(out, expected)


@pytest.mark.parametrize("threads", [1, 32, 64, 1024])
def test_a_barrier_separates_what_was_written_from_what_is_read(kernels, threads):
    values, out = numbers(5 * threads), np.empty(5, np.int32)
    for seed in (0, 1):
        arguments = [values, out, np.int32(0)]
        check_all_written(
            lambda a=arguments, s=seed: kernels.launch("block_sum", 5, threads, a, shared=4 * threads, seed=s), out
        )
        assert_array_equal(out, values.reshape(5, threads).sum(1))


def test_warp_functions_follow_their_definitions(kernels):
    values, out = numbers(64), np.empty((64, 10), np.int32)
    check_all_written(lambda: kernels.launch("warp_functions", 1, 64, [values, out], seed=2), out)
    for thread in range(64):
        lane, warp = thread % 32, values[thread // 32 * 32 :][:32]
        bits = [int(v) & 1 for v in warp]
        same = [int(v // 10 == warp[lane] // 10) for v in warp]
        expected = [
            warp[5],
            warp[lane // 8 * 8 + 5],
            warp[lane - 3 if lane % 16 >= 3 else lane],
            warp[lane + 9 if lane + 9 < 32 else lane],
            warp[lane ^ 12],
            sum(b << k for k, b in enumerate(bits)),
            any(warp > 90),
            all(warp < 99),
            sum(b << k for k, b in enumerate(same)),
            int(3.5 * warp[lane ^ 1]),
        ]
        assert_array_equal(out[thread], np.array(expected, np.uint32).astype(np.int32))


def test_parts_of_a_warp_meet_apart_and_without_threads_that_have_returned(kernels):
    out = np.empty(64, np.int32)
    check_all_written(lambda: kernels.launch("half_warps", 1, 64, [out], seed=4), out)
    for thread in range(64):
        lane, gone = thread % 32, 33 if thread >= 32 else -1
        others = [k for k in range(16 * (lane // 16), 16 * (lane // 16) + 16) if thread - lane + k != gone]
        total = sum(1 << k for turn in range(2 if lane < 16 else 4) for k in others if k % 4 == turn)
        assert out[thread] == (-1 if thread == gone else np.uint32(total).astype(np.int32))


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (1, 1, 4, 0), (2, 2, 5, 9)])
def test_barriers_count_votes(kernels, values):
    values, out = np.array(values, np.int32), np.empty((4, 3), np.int32)
    check_all_written(lambda: kernels.launch("votes", 1, 4, [values, out]), out)
    assert_array_equal(out, [[np.sum(values > 1), np.any(values > 3), np.all(values > 0)]] * 4)


EXTREMES = np.dtype(
    [("sum", "i4"), ("least", "i4"), ("most", "i4"), ("bits", "u4"), ("count", "u8"), ("total", "f4"), ("swaps", "i4")]
)


def test_atomics_lose_nothing_and_a_seed_changes_the_order_of_threads(kernels):
    values = numbers(1000)
    orders = []
    for seed in (0, 1, 2):
        out, ticket_of = np.zeros(1, EXTREMES), np.full(1000, -1, np.int32)
        out["least"], out["most"] = 10**6, -1
        kernels.launch("atomics", 8, 128, [values, out, ticket_of, np.int32(1000)], seed=seed)
        bits = int(np.bitwise_or.reduce(np.uint32(1) << (values & 31).astype(np.uint32)))
        assert out[0].tolist() == (values.sum(), values.min(), values.max(), bits, 1000, 500.0, 2000)
        assert sorted(ticket_of) == list(range(1000))
        orders.append(tuple(ticket_of))
    assert orders[0] == tuple(range(1000))
    assert len(set(orders)) == 3


def test_half_conversions_equal_numpy_for_every_half_and_round_to_even(kernels):
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    out = np.empty(65536, np.float32)
    check_all_written(lambda: kernels.launch("to_float", 256, 256, [halves, out]), out)
    assert_array_equal(out, halves.astype(np.float32))
    with np.errstate(invalid="ignore"):  # among them are infinity and NaN
        near = np.nextafter(out, np.float32(np.inf))
        middle = ((out.astype(np.float64) + np.roll(out, 1)) / 2).astype(np.float32)
    random = np.random.default_rng(0).integers(0, 2**32, 65536, np.uint32).view(np.float32)
    for values in (out, near, middle, random):
        back = np.empty(65536, np.float16)
        check_all_written(lambda v=values, b=back: kernels.launch("to_half", 256, 256, [v, b]), back)
        with np.errstate(over="ignore", invalid="ignore"):
            assert_array_equal(back, values.astype(np.float16))


def test_bit_functions_and_conversions(kernels):
    values = np.array([0, 1, 2, 3, 5, 7, -1, 1 << 30, -(1 << 31), 1234567], np.int32)
    out = np.empty((10, 6), np.int32)
    check_all_written(lambda: kernels.launch("bits", 1, 10, [values, out]), out)
    for value, row in zip(values, out, strict=True):
        text = f"{int(value) & 0xFFFFFFFF:032b}"
        expected = [
            text.count("1"),
            32 - text.rindex("1") if "1" in text else 0,
            32 - len(text.lstrip("0")),
            int(text[::-1], 2),
            int(np.rint(np.float32(value) / 2)),
            (int(text, 2) ** 2) >> 32,
        ]
        assert [v & 0xFFFFFFFF for v in row.tolist()] == [v & 0xFFFFFFFF for v in expected]


def test_shared_memory_holds_a_pattern_when_a_block_starts(kernels):
    out = np.empty(64, np.uint32)
    kernels.launch("fresh_shared", 3, 32, [out], shared=128)
    assert_array_equal(out, np.full(64, PATTERN, np.uint32))


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (0, "waits in __syncthreads"),
        (1, "mask that does not name the calling thread"),
        (2, "reads lane 7, which takes no part"),
        (3, "of its warp in"),
        (4, r"thread \(5, 0, 0\) of block \(0, 0, 0\): __trap"),
    ],
)
def test_misuse_that_is_undefined_on_a_gpu_ends_the_launch(kernels, which, message):
    for _ in range(2):
        if which == 0:
            message = "waits in (__syncthreads|__ballot_sync) for threads that wait elsewhere"
        with pytest.raises(LaunchError, match=message):
            kernels.launch("misuse", 2, 32, [np.empty(32, np.int32), np.int32(which)])
    out = np.empty(64, np.int32)
    kernels.launch("half_warps", 1, 64, [out])  # the next launch starts afresh


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        (1, 1025, 0, "1 to 1024 threads"),
        (1, (1, 1, 65), 0, "at most 64 along z"),
        ((1, 65536), 1, 0, "65535 blocks"),
        (0, 1, 0, "65535 blocks"),
        (1, 1, 228 << 10, "at most 227 KiB"),
    ],
)
def test_launches_beyond_the_limits_of_a_gpu_are_refused(kernels, grid, block, shared, message):
    with pytest.raises(LaunchError, match=message):
        kernels.launch("where", grid, block, [np.empty(6, np.int32)], shared=shared)


def test_arguments_of_the_wrong_size_are_refused(kernels):
    with pytest.raises(LaunchError, match=r"takes arguments of \[8, 8, 4\] bytes, not \[8, 8, 8\]"):
        kernels.launch("block_sum", 1, 1, [numbers(1), numbers(1), np.int64(0)])


def test_an_output_that_is_not_written_is_noticed(kernels):
    out = np.empty((61, 6), np.int32)
    with pytest.raises(AssertionError, match="24 bytes were not written, the first at 1440"):
        check_all_written(lambda: kernels.launch("where", 1, (5, 4, 3), [out]), out)


def run_block_sum(kernels, careless=0):
    values, out = numbers(2 * 96), np.empty(2, np.int32)
    kernels.launch("block_sum", 2, 64, [values[:128], out, np.int32(careless)], shared=256)
    return out.tolist()


def run_warp_reverse(kernels, careless=0):
    values, out = numbers(64), np.empty(64, np.int32)
    kernels.launch("warp_reverse", 1, 64, [values, out, np.int32(careless)])
    return out.tolist()


def run_misuse(kernels):
    try:
        kernels.launch("misuse", 1, 32, [np.empty(32, np.int32), np.int32(0)])
    except LaunchError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_thread_sanitizer_passes_correct_kernels():
    assert in_sanitizer("tsan", run_block_sum, SOURCE) == numbers(192)[:128].reshape(2, 64).sum(1).tolist()
    assert in_sanitizer("tsan", run_warp_reverse, SOURCE) == numbers(64).reshape(2, 32)[:, ::-1].reshape(-1).tolist()
    assert "wait elsewhere" in in_sanitizer("tsan", run_misuse, SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize("function", [run_block_sum, run_warp_reverse])
def test_thread_sanitizer_reports_a_missing_barrier(function):
    with pytest.raises(SanitizerReport, match="data race"):
        in_sanitizer("tsan", function, SOURCE, careless=1)


def run_copy_to(kernels, offset):
    out = np.empty(32, np.int32)
    kernels.launch("copy_to", 1, 32, [numbers(32), out, np.int32(offset)])
    return out.tolist()


def run_write_shared(kernels, at, dynamic):
    out = np.empty(1, np.int32)
    kernels.launch("write_shared", 2, 1, [out, np.int32(at), np.int32(dynamic)], shared=128)
    return out.tolist()


def run_read_vector(kernels, at):
    values, out = np.ones(64, np.float32), np.empty(1, np.float32)
    values = values[-(values.ctypes.data // 4) % 4 :][:32]
    kernels.launch("read_vector", 1, 1, [values, out, np.int32(at)])
    return out.tolist()


@pytest.mark.slow
def test_address_sanitizer_passes_correct_kernels():
    assert in_sanitizer("asan", run_copy_to, SOURCE, offset=0) == numbers(32).tolist()
    assert in_sanitizer("asan", run_block_sum, SOURCE) == numbers(192)[:128].reshape(2, 64).sum(1).tolist()
    assert in_sanitizer("asan", run_write_shared, SOURCE, at=31, dynamic=0) == [1]
    assert in_sanitizer("asan", run_write_shared, SOURCE, at=31, dynamic=1) == [1]
    assert in_sanitizer("asan", run_read_vector, SOURCE, at=4) == [4]
    assert "wait elsewhere" in in_sanitizer("asan", run_misuse, SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (run_copy_to, {"offset": 1}, "heap-buffer-overflow"),
        (run_copy_to, {"offset": -1}, "heap-buffer-overflow"),
        (run_write_shared, {"at": 32, "dynamic": 0}, "global-buffer-overflow"),
        (run_write_shared, {"at": 32, "dynamic": 1}, "heap-buffer-overflow"),
        (run_read_vector, {"at": 1}, "misaligned address"),
    ],
)
def test_address_and_undefined_behaviour_sanitizers_report_wrong_accesses(function, arguments, message):
    with pytest.raises(SanitizerReport, match=message):
        in_sanitizer("asan", function, SOURCE, **arguments)
