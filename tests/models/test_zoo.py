"""The zoo and what a model argument may be: a name, an ONNX file, a checkpoint."""

import builtins
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from retinastream.errors import MissingPackageError, ModelError
from retinastream.models import zoo as zoo_module
from retinastream.models import zoo_entries
from retinastream.models.spec import DetectorSpec
from retinastream.models.spec_registry import SPECS
from retinastream.models.zoo import cache_dir, cached_path, export_destination, find_entry, path_of, pull, resolve_model
from retinastream.models.zoo_entries import parse_zoo, zoo

DATA = Path(os.environ.get("RETINASTREAM_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CHECKPOINT = DATA / "weights" / "mobilenet0.25_Final.pth"
needs_data = pytest.mark.skipif(not CHECKPOINT.is_file(), reason=f"{CHECKPOINT.name} is not in the test data")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETINASTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def network_file(tmp_path):
    """Return an exported network with random weights."""
    pytest.importorskip("torch", reason="the export extra is not installed")
    pytest.importorskip("onnx", reason="the export extra is not installed")
    from retinastream.models.export import export_network
    from retinastream.models.network import RetinaFace

    return export_network(RetinaFace(), DetectorSpec(), tmp_path / "random.onnx")


def test_every_entry_says_how_to_get_it_and_on_which_terms():
    assert {"mnet025", "biubug6-r50", "uniface-mnet025", "uniface-r34", "arcface-mbf", "arcface-r50"} <= set(zoo())
    assert len({entry.sha256 for entry in zoo().values()}) == len(zoo())
    for entry in zoo().values():
        assert entry.licence
        assert entry.description
        if entry.url is not None:
            assert entry.url.startswith("https://github.com/yakhyo/uniface/releases/download/weights/")


@pytest.mark.parametrize(
    ("what", "change", "message"),
    [
        ("an unknown key", "lisence: MIT", "lisence"),
        ("a hash that is none", "sha256: abc", "sha256"),
        ("no way to get it", "url: null", "one of bundled, url and manual, not 0"),
        ("an unknown spec", "spec: nothing", "unknown spec 'nothing'"),
    ],
)
def test_wrong_zoo_files_are_refused(what, change, message):
    lines = {
        "kind": "kind: detector",
        "description": "description: d",
        "format": "format: onnx",
        "url": "url: https://example.org/a.onnx",
        "sha256": f"sha256: {'a' * 64}",
        "licence": "licence: MIT",
        "spec": "spec: retinaface-light",
    }
    parse_zoo("net:\n" + "".join(f"  {line}\n" for line in lines.values()))
    lines[change.split(":")[0]] = change
    with pytest.raises(ValueError, match=message):
        parse_zoo("net:\n" + "".join(f"  {line}\n" for line in lines.values()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("mnet25", "unknown model 'mnet25'; did you mean .*mnet025.*retinastream model list"),
        ("qqqq", "unknown model 'qqqq'; `retinastream model list`"),
        ("folder/net.onnx", r"model file folder/net\.onnx does not exist"),
        ("net.pth", r"model file net\.pth does not exist"),
        ("biubug6-mnet025", r"mnet025 is not on this machine yet.*mobilenet0\.25_Final\.pth"),
        ("uniface-r18", "run `retinastream model pull uniface-r18`"),
        ("arcface-mbf", "is an embedder and finds no faces; detectors are mnet025"),
    ],
)
def test_models_that_are_not_here_are_explained(given, message):
    with pytest.raises(ModelError, match=message):
        resolve_model(given)


def test_cache_follows_the_environment_or_the_user(cache, monkeypatch):
    assert cache_dir() == cache
    monkeypatch.delenv("RETINASTREAM_CACHE")
    assert cache_dir().parts[-2:] == ("retinastream", "models")


def test_onnx_path_is_read_as_it_is(network_file):
    model = resolve_model(network_file)
    assert (model.path, model.name, model.spec) == (network_file, "random", DetectorSpec())
    assert resolve_model(str(network_file)) == model


def test_cached_file_of_other_content_is_refused(network_file, cache):
    cache.mkdir(parents=True)
    for name in ("uniface-mnet025", "biubug6-mnet025"):
        shutil.copy(network_file, cached_path(name))
        with pytest.raises(ModelError, match=f"is not the file that {name} names"):
            resolve_model(name)


def test_model_of_the_package_is_found_without_cache_network_or_export(cache):
    entry = zoo()["mnet025"]
    model = resolve_model("mnet025")
    assert (model.name, model.sha256, model.spec) == ("mnet025", entry.sha256, DetectorSpec())
    assert pull("mnet025") == path_of(entry) == model.path
    assert not cache.exists()
    assert 1_600_000 < model.path.stat().st_size < 1_900_000


def test_damaged_model_of_the_package_is_refused(network_file, monkeypatch):
    monkeypatch.setattr(zoo_module, "path_of", lambda entry: network_file)
    with pytest.raises(ModelError, match=r"is not the file that mnet025 names.*install the package again"):
        resolve_model("mnet025")
    monkeypatch.setattr(zoo_module, "path_of", lambda entry: network_file.with_name("gone.onnx"))
    with pytest.raises(ModelError, match="install the package again"):
        resolve_model("mnet025")


def test_cached_download_of_the_right_hash_is_found(network_file, cache, monkeypatch):
    content = network_file.read_bytes()
    entry = zoo()["uniface-mnet025"].model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    monkeypatch.setattr(zoo_module, "zoo", lambda: {entry.name: entry})
    cache.mkdir(parents=True)
    cached_path(entry.name).write_bytes(content)
    assert resolve_model(entry.name).name == "uniface-mnet025"
    assert pull(entry.name) == cached_path(entry.name)


def test_pull_of_a_manual_model_says_what_to_do():
    with pytest.raises(ModelError, match=r"biubug6-mnet025 cannot be downloaded.*README.*retinastream model export"):
        pull("biubug6-mnet025")
    with pytest.raises(ModelError, match="did you mean uniface-r18"):
        find_entry("uniface-r8")


@pytest.fixture
def checkpoint(tmp_path):
    """Return a checkpoint with random weights."""
    torch = pytest.importorskip("torch", reason="the export extra is not installed")
    pytest.importorskip("onnx", reason="the export extra is not installed")
    from retinastream.models.network import RetinaFace

    path = tmp_path / "mine.pth"
    torch.save(RetinaFace(seed=8).state_dict(), path)
    return path


def test_checkpoint_is_exported_once_for_each_spec(checkpoint, cache):
    first = resolve_model(checkpoint, spec=SPECS["retinaface-light"])
    assert first.path.parent == cache / "exported"
    assert first.name == "mine"
    written = first.path.stat().st_mtime_ns
    assert resolve_model(checkpoint, spec=SPECS["retinaface-light"]) == first
    assert first.path.stat().st_mtime_ns == written
    other = resolve_model(checkpoint, spec=SPECS["retinaface-light-10-20"])
    assert other.spec.anchor_sizes == ((10, 20), (32, 64), (128, 256))
    assert other.path != first.path


def test_unknown_checkpoint_asks_for_its_spec_even_when_it_was_exported_before(checkpoint):
    resolve_model(checkpoint, spec=DetectorSpec())
    with pytest.raises(ModelError, match="--spec retinaface-light"):
        resolve_model(checkpoint)


def test_checkpoint_without_the_extra_names_the_extra(checkpoint, monkeypatch):
    real_import = builtins.__import__

    def without_torch(name, *arguments, **options):
        if name == "retinastream.models.export":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(MissingPackageError, match=r"package torch is needed: pip install 'retinastream\[export\]'"):
        resolve_model(checkpoint, spec=DetectorSpec())


@pytest.mark.data
@needs_data
def test_exported_public_checkpoint_is_found_by_its_zoo_name(cache):
    pytest.importorskip("torch", reason="the export extra is not installed")
    destination = export_destination(CHECKPOINT, "fused")
    assert destination == cached_path("biubug6-mnet025")
    zoo_module.export_checkpoint(CHECKPOINT, destination)
    model = resolve_model("biubug6-mnet025")
    assert (model.name, model.path, model.spec) == ("biubug6-mnet025", destination, DetectorSpec())
    assert resolve_model(CHECKPOINT).sha256 == model.sha256
    assert export_destination(CHECKPOINT, "classic") == Path("mobilenet0.25_Final-classic.onnx")


def test_export_of_an_unknown_checkpoint_goes_to_the_working_directory(checkpoint):
    assert export_destination(checkpoint, "fused") == Path("mine-fused.onnx")
    with pytest.raises(ModelError, match="does not exist"):
        export_destination(checkpoint.with_name("other.pth"), "fused")


def test_documentation_lists_every_model_with_its_terms():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    for name, entry in zoo().items():
        assert entry.licence in rows[name], name
        if entry.average_precision is not None:
            assert f"{entry.average_precision.hard:.1f}" in rows[name], name


def test_zoo_is_found_by_hash():
    assert zoo_entries.find_by_sha256(zoo()["biubug6-r50"].sha256).name == "biubug6-r50"
    assert zoo_entries.find_by_sha256("0" * 64) is None
