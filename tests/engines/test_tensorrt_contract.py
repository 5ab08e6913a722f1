"""What this package uses of TensorRT exists, in the versions that it says it supports, as it is used.

The real bindings are looked at, not TensorRT: that names, members and signatures are right, not what they do. What is
used is not listed anywhere: mypy reads our sources against signatures that are made of the real bindings, and refuses
any value in them whose type it does not know, so nothing of TensorRT can be used unchecked.
"""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_tensorrt import FakeWorld
from real_tensorrt_bindings import VERSIONS, real_bindings

ROOT = Path(__file__).resolve().parents[2]
TENSORRT = ROOT / "engines" / "tensorrt"
NEWEST = "11.4.0.106"
# Members that we ask for by hasattr, and whether they are there in 10.12, 10.16 and 11.4.
PROBED = {"EXPLICIT_BATCH": (True, True, False)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(request):
    return request.config.cache.mkdir("tensorrt_bindings")


@pytest.fixture(scope="module", params=list(VERSIONS), ids=lambda version: f"TensorRT {version}")
def real(request, cache):
    return real_bindings(request.param, cache)


@pytest.fixture(scope="module")
def newest(cache):
    return real_bindings(NEWEST, cache)


def modules_that_use_tensorrt():
    """Our modules that import TensorRT, for types only or in earnest: {path: module name}."""
    found = {}
    for folder in ("engines", "pipeline", "kernels", "retinastream", "evaluation"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
            names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            if any(name.split(".")[0] == "tensorrt" for name in names):
                inside = path.relative_to(ROOT).with_suffix("").parts
                found[path] = ".".join(inside if folder == "retinastream" else ("retinastream", *inside))
    return found


def check_types(real, folder, ours=ROOT / ".typing"):
    """Run mypy over those modules with the types of the real bindings: (exit code, its lines)."""
    modules = modules_that_use_tensorrt().values()
    sections = "".join(f"[mypy-{module}]\nfollow_imports = normal\ndisallow_any_expr = True\n" for module in modules)
    config = folder / "mypy.ini"
    config.write_text(
        f"[mypy]\nstrict = True\nwarn_unused_ignores = False\nwarn_unused_configs = False\npython_version = 3.12\n"
        f"mypy_path = {real.typed()}:{ours}\nexplicit_package_bases = True\nignore_missing_imports = True\n"
        f"follow_imports = silent\n{sections}[mypy-tensorrt.*]\nignore_errors = True\nfollow_imports = silent\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(config),
        "--cache-dir",
        str(real.folder.parent / "mypy"),
    ]
    for module in modules:
        command += ["-m", module]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    return answer.returncode, answer.stdout + answer.stderr


def test_the_modules_that_use_tensorrt_are_found():
    names = {path.name for path in modules_that_use_tensorrt()}
    assert {
        "build.py",
        "builder_config.py",
        "load.py",
        "loaded_plan.py",
        "log.py",
        "network.py",
        "progress.py",
    } <= names
    assert "slot.py" in names


def test_every_use_of_tensorrt_fits_the_signatures_of_the_real_bindings(real, tmp_path):
    code, text = check_types(real, tmp_path)
    assert code == 0, text


MISTAKES = [
    ("slot.py", ".execute_async_v3(", ".enqueue_v3(", '"IExecutionContext" has no attribute "enqueue_v3"'),
    ("slot.py", "scratch.array), scratch.size)", "scratch.array))", 'Missing positional argument "size"'),
    ("builder_config.py", "MemoryPoolType.WORKSPACE", "MemoryPoolType.WORK", 'has no attribute "WORK"'),
    ("builder_config.py", "ignore_mismatch=False", "ignore=False", 'Unexpected keyword argument "ignore"'),
    ("builder_config.py", "config.max_aux_streams = ", "config.aux_streams = ", 'has no attribute "aux_streams"'),
    ("network.py", "error.node_operator()", "error.operator()", 'has no attribute "operator"'),
    ("progress.py", "def phase_start(self, phase_name: str", "def phase_start(self, phase_name: int", "incompatible"),
    ("loaded_plan.py", "engine: trt.ICudaEngine) -> tuple[Eng", "engine: Any) -> tuple[Eng", 'has type "Any"'),
]


def test_wrong_uses_are_noticed(newest, tmp_path):
    """Mistakes of all kinds, put into copies of our modules; the last is a value of unknown type."""
    types = tmp_path / "types"
    linked_copy(ROOT / ".typing" / "retinastream", types / "retinastream", "engines")
    linked_copy(ROOT / "engines", types / "retinastream" / "engines", "tensorrt")
    linked_copy(TENSORRT, types / "retinastream" / "engines" / "tensorrt")
    for name, before, after, _ in MISTAKES:
        copy = types / "retinastream" / "engines" / "tensorrt" / name
        text = copy.read_text(encoding="utf-8")
        assert before in text
        if copy.is_symlink():
            copy.unlink()
            text = text.replace("from typing import ", "from typing import Any, ")
        copy.write_text(text.replace(before, after), encoding="utf-8")
    code, lines = check_types(newest, tmp_path, types)
    assert code == 1
    missed = [
        (name, after)
        for name, _, after, says in MISTAKES
        if not any(name in line and says in line for line in lines.splitlines())
    ]
    assert missed == [], lines


def linked_copy(source, target, *without):
    """A folder with links to everything in another one."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in (*without, "__pycache__"):
            (target / path.name).symlink_to(path.resolve())


def test_members_that_are_probed_are_there_in_the_versions_that_have_them(cache):
    asked = set()
    for path in modules_that_use_tensorrt():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("hasattr", "getattr"):
                name = node.args[1]
                asked.add(name.value if isinstance(name, ast.Constant) else ast.unparse(name))
    assert asked == {*PROBED, "level"}
    described = [real_bindings(version, cache).describe() for version in VERSIONS]
    for name, expected in PROBED.items():
        assert tuple(name in each["NetworkDefinitionCreationFlag"] for each in described) == expected


def test_every_level_of_compatibility_exists(real):
    from retinastream.engines.tensorrt.builder_config import _COMPATIBILITY

    assert set(_COMPATIBILITY.values()) <= set(real.describe()["HardwareCompatibilityLevel"])


@pytest.mark.parametrize("version", ["10.12.0.36", "10.16.1.11", NEWEST])
def test_the_fake_has_nothing_that_the_real_one_lacks(cache, version):
    """Every class, member and parameter of it; enumerations with the same numbers."""
    described = real_bindings(version, cache).describe()
    module = FakeWorld(version).module
    wrong = []
    for name, owner in vars(module).items():
        if not isinstance(owner, type):
            continue
        wrong += differences(name, owner, described)
    wrong += differences("ILogger.Severity", module.ILogger.Severity, described)
    assert wrong == []


def differences(name, fake, described):
    if name not in described:
        return [f"{name} does not exist"]
    real = described[name]
    found = []
    for member, value in vars(fake).items():
        if member.startswith("_"):
            continue
        if member not in real:
            found.append(f"{name}.{member} does not exist")
        elif real[member]["kind"] == "member":
            if int(value) != real[member]["value"]:
                found.append(f"{name}.{member} is {real[member]['value']} and not {int(value)}")
        elif inspect.isfunction(value):
            found += parameter_differences(f"{name}.{member}", value, real[member])
        elif real[member]["kind"] not in ("property", "class"):
            found.append(f"{name}.{member} is a {real[member]['kind']}")
    return found


def parameter_differences(name, function, real):
    if real["kind"] != "method":
        return [f"{name} is no method"]
    ours = list(inspect.signature(function).parameters)[1:]
    signatures = re.findall(r"\(self: [^,)]+((?:, [^\n]*)?)\) ->", real["doc"])
    theirs = [re.findall(r", (\w+):", signature) for signature in signatures]
    return [] if ours in theirs else [f"{name} takes {theirs} and not {ours}"]


def test_the_comparison_of_the_fake_would_notice(newest):
    class Builder:
        def create_network(self, bits=0): ...
        def build_engine(self, network): ...

        max_threads = property(lambda self: 1)

        def create_builder_config(self): ...

    found = differences("Builder", Builder, newest.describe())
    assert len(found) == 2
    assert "Builder.create_network takes [['flags']] and not ['bits']" in found
    assert "Builder.build_engine does not exist" in found


_OURS = """
import sys, threading
from retinastream.errors import EngineError
from retinastream.engines.tensorrt import load, log, progress
from retinastream.engines.tensorrt.loaded_plan import shape_of
import tensorrt as trt
print(load.tensorrt_version())
for create in (load.create_builder, load.create_runtime):
    try: create()
    except EngineError as error: print(error)
logger = log.process_logger()
logger.log(trt.ILogger.Severity.ERROR, "The engine plan file is not compatible")
print(log.RING.since(0))
stop = threading.Event()
clock = progress.BuildClock()
monitor = progress.make_monitor(clock, stop)
monitor.phase_start("Building", None, 4)
print(monitor.step_complete("Building", 0), clock.now().fraction)
stop.set()
print(monitor.step_complete("Building", 1))
print(shape_of(trt.Dims([1, 3, 64, -1])))
"""


def test_our_classes_can_be_made_of_the_real_ones(real):
    """The logger and the monitor are real subclasses, and a null pointer becomes our error."""
    lines = real.run(_OURS).splitlines()
    assert lines[0] == real.version
    assert lines[1].startswith("TensorRT's builder does not start")
    assert lines[2].startswith("TensorRT's runtime does not start")
    assert lines[3] == "('The engine plan file is not compatible',)"
    assert lines[4:] == ["True 0.25", "False", "(1, 3, 64, -1)"]


def test_the_package_can_be_imported_without_tensorrt():
    modules = "retinastream.engines.tensorrt_runtime, retinastream.engines.stored_plans"
    code = f"import sys; sys.modules['tensorrt'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ.copy(), timeout=60)
