"""What the README promises, done."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def mnet025(data):
    """The zoo's mnet025, exported into the cache as docs/models.md says."""
    pytest.importorskip("torch", reason="torch is not installed, and the checkpoint is exported with it")
    from retinastream.models.zoo import cached_path, export_checkpoint, export_destination

    checkpoint = data / "weights" / "mobilenet0.25_Final.pth"
    if not checkpoint.is_file():
        pytest.skip(f"{checkpoint} is absent")
    if not cached_path("mnet025").is_file():
        export_checkpoint(checkpoint, export_destination(checkpoint, "fused"))
    return cached_path("mnet025")


@pytest.mark.data
@pytest.mark.slow
def test_python_example_prints_time_boxes_scores_and_landmarks(mnet025, tmp_path):
    [example] = blocks(ROOT / "README.md", "python")
    (tmp_path / "in.mp4").symlink_to(ROOT / "tests" / "media" / "sample_4k.mp4")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "fit:1280" in done.stderr, "the size that auto chose must be said"
    times = re.findall(r"^(\d+\.\d+) \[", done.stdout, re.MULTILINE)
    assert [round(float(t) * 25) for t in times] == list(range(100))


@pytest.mark.data
def test_python_page_runs(mnet025, data, tmp_path):
    example = blocks(ROOT / "docs" / "python.md", "python")[0]
    (tmp_path / "group.jpg").symlink_to(data / "stills" / "biubug6_curve_test.jpg")
    (tmp_path / "in.mp4").symlink_to(data / "videos" / "asl_sister.mkv")
    example = example.replace("start=10, end=20", "start=1, end=2")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [str(n) for n in range(30, 60, 2)]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [t.partition("#") for t in re.findall(r"\]\(([^)]+)\)", text) if "://" not in t]
    assert targets or page != "README.md"
    for name, _, anchor in targets:
        place = ((ROOT / page).parent / name) if name else ROOT / page
        assert place.exists(), f"{page} links to {name}, which is not there"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_options_in_the_docs_exist():
    import typer

    from retinastream.cli.main import app

    command = typer.main.get_command(app)
    known = {name for c in command.commands["detect"].params for name in [*c.opts, *c.secondary_opts]}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for line in re.findall(r"retinastream detect [^`\n]*", page.read_text(encoding="utf-8")):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line.split(" -- ")[0]):
                assert option in known | {"--help"}, f"{page.name} uses {option}"
