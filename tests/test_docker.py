"""docker/Dockerfile: what it copies exists, its bases and packages are pinned, and its commands are known."""

import fnmatch
import re
import shlex

from spectrum_bench.commands.entry import check_words
from spectrum_bench.commands.main import COMPOSED, config_of
from spectrum_bench.paths import ROOT

FOLDER = ROOT / "docker"
TEXT = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
JOINED = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE))
STEPS = [line.split(None, 1) for line in JOINED.splitlines() if line.strip()]
WORDS = ("ARG", "FROM", "COPY", "ENV", "WORKDIR", "RUN", "USER", "ENTRYPOINT", "CMD", "SHELL")


def stages() -> dict[str, list[tuple[str, str]]]:
    """The steps of each stage by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in STEPS:
        if word == "FROM":
            found[rest.split(" AS ")[1]] = []
        if found:
            found[list(found)[-1]].append((word, rest))
    return found


def test_every_line_is_an_instruction_and_every_base_has_a_version():
    assert {word for word, _ in STEPS} <= set(WORDS) and list(stages()) == ["uv", "cpu", "cuda"]
    arguments = dict(rest.split("=", 1) for word, rest in STEPS if word == "ARG")
    bases = [
        re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], rest.split()[0]) for word, rest in STEPS if word == "FROM"
    ]
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+", base) and not base.endswith(":latest") for base in bases)
    assert "cuda" in bases[2] and "cuda" not in bases[1]


def test_what_is_copied_exists_and_passes_the_ignore_file():
    kept = [line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    for name in (
        "src/spectrum_bench",
        "configs/base.yaml",
        "prompts",
        "assets/tiny",
        "results/paper",
        "requirements.lock",
    ):
        assert any(name == each or name.startswith(f"{each}/") for each in kept)
    known = list(stages())
    for word, rest in STEPS:
        if word == "COPY":
            *options, source, _ = rest.split()
            stage = [option.split("=")[1] for option in options if option.startswith("--from=")]
            assert stage[0] in known if stage else source == "." or source in kept
    assert not any(fnmatch.fnmatch(".venv", each) for each in kept)


def test_both_images_run_the_pinned_packages_as_no_root():
    cpu, cuda = stages()["cpu"], stages()["cuda"]
    installed = [rest for word, rest in cpu if word == "RUN" and "uv pip install" in rest]
    assert len(installed) == 1 and "--require-hashes -r requirements.lock" in installed[0]
    assert ("COPY", "--from=cpu /opt/venv /opt/venv") in cuda and ("COPY", "--from=cpu /bench /bench") in cuda
    uv = re.search(r"uv==([\d.]+)", (ROOT / "scripts/lock.sh").read_text())[1]
    assert stages()["uv"][0][1].startswith(f"ghcr.io/astral-sh/uv:{uv} ")
    for steps in (cpu, cuda):
        assert [rest for word, rest in steps if word == "USER"][-1] == "1000:1000"
        assert ("ENTRYPOINT", '["python", "-m", "spectrum_bench"]') in steps
        assert any(word == "ENV" and "PYTHONPATH=/bench/src" in rest for word, rest in steps)


def test_its_examples_have_words_that_exist():
    comments = re.sub(r"\\\n#\s*", "", TEXT)
    builds = re.findall(r"^#\s+docker build -f (\S+) --target (\w+) ", comments, re.MULTILINE)
    assert builds == [("docker/Dockerfile", "cpu"), ("docker/Dockerfile", "cuda")]
    runs = re.findall(r"^#\s+docker run .*?spectrum-bench:\w+ (.*)$", comments, re.MULTILINE)
    assert len(runs) == 2
    for line in runs:
        name, *words = shlex.split(line)
        assert name in COMPOSED
        check_words(config_of(name, words), words)
