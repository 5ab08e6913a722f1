"""The real bindings of TensorRT without TensorRT: wheels of 1.3 MB and nine empty functions in place of its libraries.

The bindings need nine functions of three libraries. With a stand-in for those they can be imported on any machine, and
every class, member, number and signature can be looked at. Nothing can be built or run with them.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

# The oldest version that is supported, the last of 10 and the newest.
VERSIONS = {
    "10.12.0.36": "tensorrt-cu12-bindings",
    "10.16.1.11": "tensorrt-cu12-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_FUNCTIONS = (
    "void* createInferBuilder_INTERNAL(void* a, int b) { return 0; }",
    "void* createInferRuntime_INTERNAL(void* a, int b) { return 0; }",
    "void* createInferRefitter_INTERNAL(void* a, void* b, int c) { return 0; }",
    "void* createNvOnnxParser_INTERNAL(void* a, void* b, int c) { return 0; }",
    "void* createNvOnnxParserRefitter_INTERNAL(void* a, void* b, int c) { return 0; }",
    "void* getBuilderPluginRegistry(int a) { return 0; }",
    "void* getPluginRegistry(void) { return 0; }",
    "int getNvOnnxParserVersion(void) { return 0; }",
    "int initLibNvInferPlugins(void* a, const char* b) { return 1; }",
)
# Printed by the real bindings: for every class its members, what they are, and the signatures in their docstrings.
_DESCRIBE = """
import json, tensorrt
def kind(owner, name):
    value = getattr(owner, name)
    if isinstance(value, owner): return {"kind": "member", "value": int(value)}
    if isinstance(value, type): return {"kind": "class"}
    if isinstance(value, property):
        setter = value.fset is not None
        return {"kind": "property", "settable": setter}
    return {"kind": "method", "doc": (value.__doc__ or "")} if callable(value) else {"kind": "other"}
found = {}
for name in dir(tensorrt):
    owner = getattr(tensorrt, name)
    if isinstance(owner, type):
        found[name] = {each: kind(owner, each) for each in dir(owner) if not each.startswith("_")}
nested = tensorrt.ILogger.Severity
found["ILogger.Severity"] = {each: kind(nested, each) for each in dir(nested) if not each.startswith("_")}
print(json.dumps({"version": tensorrt.__version__, "classes": found}))
"""


@dataclass(frozen=True)
class RealBindings:
    """One version: where it was unpacked, and the environment in which Python can import it as ``tensorrt``."""

    version: str
    folder: Path

    def run(self, code, *arguments):
        """Run code in a process of its own, in which ``import tensorrt`` gives the real bindings."""
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.folder / "stubs"),
            "PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }
        command = [sys.executable, "-c", code, *map(str, arguments)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert answer.returncode == 0, answer.stderr[-2000:]
        return answer.stdout

    def describe(self):
        """Class name to member name to what it is."""
        described = json.loads(self.run(_DESCRIBE))
        assert described["version"] == self.version
        return described["classes"]

    def typed(self):
        """A folder with ``tensorrt/__init__.pyi``, made of the signatures in the docstrings."""
        target = self.folder / "types"
        stub = target / "tensorrt" / "__init__.pyi"
        if not stub.is_file():
            self.run(
                "import sys; from mypy.stubgen import main; main(sys.argv[1:])",
                "--inspect-mode",
                "-q",
                "-m",
                "tensorrt_bindings.tensorrt",
                "-o",
                target / "made",
            )
            text = (target / "made" / "tensorrt_bindings" / "tensorrt.pyi").read_text(encoding="utf-8")
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text(_repaired(text) + "\n__version__: str\n", encoding="utf-8")
        return target


def real_bindings(version, cache):
    """The bindings of a version, fetched once into ``cache``; skips the test where they cannot be had."""
    folder = Path(cache) / f"{version}-{sys.implementation.cache_tag}"
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fetch(version, folder)
        _compile_stubs(version.split(".")[0], folder / "stubs")
        # Under the name that code imports; the real package of that name does the same.
        (folder / "tensorrt.py").write_text(
            "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n", encoding="utf-8"
        )
        (folder / "complete").touch()
    return RealBindings(version, folder)


def _fetch(version, folder):
    requirement = f"{VERSIONS[version]}=={version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "-q",
        *("--retries", "1", "--timeout", "15"),
        "-d",
        str(folder),
        requirement,
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"NOT TESTED: {requirement} did not arrive within 180 s")
    wheels = sorted(folder.glob("*.whl"))
    if answer.returncode or not wheels:
        lines = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
        pytest.skip(f"NOT TESTED: {requirement} cannot be fetched here: {lines[-1]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)


def _compile_stubs(major, folder):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT TESTED: there is no C compiler (cc)")
    folder.mkdir()
    source = folder / "stub.c"
    source.write_text("\n".join(_FUNCTIONS) + "\n", encoding="utf-8")
    for library in _LIBRARIES:
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)], check=True
        )


def _repaired(text):
    """Signatures that are not Python, of which there are one or two, lose their parameters."""
    lines = text.splitlines()
    while True:
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            found = re.match(r"(\s*)def (\w+)\(", lines[error.lineno - 1])
            lines[error.lineno - 1] = f"{found[1]}def {found[2]}(self, *args: object, **kwargs: object) -> None: ..."
        else:
            return "\n".join(lines)
