"""What the README promises, done."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_python_example_prints_time_boxes_scores_and_landmarks(tmp_path):
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
def test_python_page_runs(data, tmp_path):
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


PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").glob("train-*.yaml")]


def commands_in(page):
    """Command lines, in code blocks and in the text, as lists of words."""
    text = page.read_text(encoding="utf-8")
    return [
        line.split(" -- ")[0].split() for line in re.findall(r"retinastream ((?:detect|eval|train) [^`\n#]*)", text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_docs_exist(page):
    import typer

    from retinastream.cli.main import app

    for words in commands_in(page):
        command = typer.main.get_command(app)
        for word in words:
            if word not in getattr(command, "commands", {}):
                break
            command = command.commands[word]
        # The group `train` reads its options as those of `train run`.
        command = getattr(command, "commands", {}).get("run", command)
        known = {name for c in command.params for name in [*c.opts, *c.secondary_opts]} | {"--help"}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(words)):
            assert option in known, f"{page.name}: retinastream {' '.join(words)} uses {option}"


def test_the_docs_show_commands_of_every_kind():
    shown = {words[0] for page in PAGES for words in commands_in(page)}
    assert shown == {"detect", "eval", "train"}


def test_the_training_page_names_every_key_of_the_configuration():
    pytest.importorskip("torch", reason="the train extra is not installed")
    from retinastream.training.config_file import parse_config

    distilled = {"data": [{"labels": "a"}], "evaluation": {"data": {"labels": "b"}}, "distillation": {"teacher": "c"}}
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for section, values in parse_config(distilled, "test").plain().items():
        fields = dict(values[0] if section == "data" else values)
        fields |= fields.pop("recipe", {})
        for key in fields:
            assert re.search(rf"`([a-z]+\.)?{key}`", text), f"training.md does not name {section}.{key}"
