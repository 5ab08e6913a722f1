"""``retinastream engine bench``, called as a person calls it."""

import json
import signal

import pytest

SHORT = ["--shape", "160x90", "--duration", "0", "--warmUp", "0", "--iterations", "5", "--device", "cpu"]


@pytest.fixture
def bench(retinastream, tiny_model):
    return lambda *arguments: retinastream("engine", "bench", tiny_model["fused"], *SHORT, *arguments)


def test_the_figures_are_printed_with_the_words_of_trtexec(bench):
    code, out, err = bench("--runtime", "openvino", "--batch", "2", "--infStreams", "2", "--threads", "1")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "=== openvino f32 on cpu, batch 2, 160x96, 2 streams, 1 thread ==="
    assert lines[1].startswith("Throughput: ")
    assert lines[1].endswith(" queries)")
    assert lines[2].startswith("Latency: min = ")
    assert "percentile(99%) = " in lines[2]
    assert lines[3].startswith("Total Host Walltime: ")
    assert len(lines) == 4
    assert "measuring openvino" in err


def test_several_runtimes_are_compared_with_the_first(bench, tmp_path):
    file = tmp_path / "bench.json"
    code, out, _ = bench("--runtime", "openvino:f32", "--runtime", "onnxruntime", "--report", file)
    assert code == 0
    first, second = out.splitlines()[-2:]
    assert "=== throughput in relation to openvino f32 on cpu ===" in out
    assert first.startswith("openvino f32 on cpu     1.00x  ")
    written = json.loads(file.read_text())
    assert written["picture"] == "160x90"
    one, other = written["results"]
    assert (one["runtime"], other["runtime"]) == ("openvino", "onnxruntime")
    assert (one["height"], one["width"], one["iterations"]) == (96, 160, 5)
    assert one["ratio"] == 1
    assert other["ratio"] == pytest.approx(other["throughput_qps"] / one["throughput_qps"], rel=1e-3)
    assert f"{other['ratio']:.2f}x" in second
    assert one["times_ms"]["latency"]["min"] <= one["times_ms"]["latency"]["median"]


def test_json_can_be_printed(bench):
    code, out, _ = bench("--json")
    assert code == 0
    assert json.loads(out)["results"][0]["runtime"] == "openvino"


def test_a_report_is_replaced_only_when_asked(bench, tmp_path):
    file = tmp_path / "bench.json"
    file.write_text("mine")
    code, out, err = bench("--report", file)
    assert (code, out, "pass --overwrite" in err, file.read_text()) == (2, "", True, "mine")
    assert bench("--report", file, "--overwrite")[0] == 0
    assert json.loads(file.read_text())["results"]


def test_what_was_measured_before_a_runtime_failed_is_written(bench, tmp_path):
    file = tmp_path / "bench.json"
    code, out, err = bench("--runtime", "openvino", "--runtime", "tensorrt", "--report", file)
    assert (code, "does not run on the CPU" in err) == (2, True)
    assert "=== openvino f32 on cpu" in out
    assert [result["runtime"] for result in json.loads(file.read_text())["results"]] == ["openvino"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--shape", "4K"], 2, "expected WIDTHxHEIGHT", id="shape"),
        pytest.param(["--shape", "0x5"], 2, "expected WIDTHxHEIGHT", id="no width"),
        pytest.param(["--batch", "0"], 2, "batch was given as 0", id="batch"),
        pytest.param(["--runtime", "caffe"], 2, "runtime 'caffe' is not known", id="runtime"),
        pytest.param(["--runtime", "openvino:int8"], 2, "precision 'int8'", id="precision"),
        pytest.param(["--runtime", "tensorrt"], 2, "does not run on the CPU", id="a GPU's runtime on the CPU"),
        pytest.param(["--report", "."], 2, "is a directory", id="report"),
    ],
)
def test_what_cannot_be_measured_is_said(bench, arguments, code, said):
    got, _, err = bench(*arguments)
    assert got == code
    assert said in err


def test_ctrl_c_prints_what_was_measured(start, tiny_model):
    process = start(
        "engine",
        "bench",
        tiny_model["fused"],
        *SHORT,
        "--duration",
        "600",
        "--runtime",
        "openvino",
        "--runtime",
        "torch",
    )
    assert "measuring openvino" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping: printing what was measured" in err
    assert "torch" not in out + err
