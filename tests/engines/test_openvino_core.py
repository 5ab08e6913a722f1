"""A process has one core of OpenVINO: Ctrl-C works after engines have ended in any order and on any thread."""

import subprocess
import sys

import pytest

ov = pytest.importorskip("openvino", reason="the runtime openvino is not installed")

from retinastream.engines.openvino_core import openvino_core  # noqa: E402

# A signal whose stack is gone ends the process, so it is sent to a process of its own.
ENDS = """
import signal, sys, threading
from retinastream.engines.openvino_runtime import OpenVinoEngine
from retinastream.models.onnx_file import read_onnx

def interrupt(after):
    print(after, flush=True)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        return
    raise AssertionError("the signal did not arrive")

signal.signal(signal.SIGINT, signal.default_int_handler)
model = read_onnx(sys.argv[1])
first, second = (OpenVinoEngine(model, threads=1) for _ in "12")
interrupt("both began")
first.close()
interrupt("the first ended")
second.close()
interrupt("the second ended")
several = OpenVinoEngine(model, threads=1)
for width in (32, 64, 96, 128, 160):
    several.slot(1, 32, width, steady=True)
interrupt("sizes were forgotten")
thread = threading.Thread(target=several.close)
thread.start()
thread.join()
interrupt("a thread ended the last")
"""


def test_every_caller_gets_the_same_core():
    assert openvino_core(ov) is openvino_core(ov)
    assert "CPU" in openvino_core(ov).available_devices


def test_ctrl_c_is_an_exception_whatever_ended_before(tiny_model):
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", ENDS, str(tiny_model["fused"])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    reached = "both began", "the first ended", "the second ended", "sizes were forgotten", "a thread ended the last"
    assert (done.returncode, tuple(done.stdout.splitlines())) == (0, reached), done.stderr
