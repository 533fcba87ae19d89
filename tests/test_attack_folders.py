"""Received folders that are damaged or meant badly, one case a line: evaluate and report refuse each in one line."""

import hashlib
import json
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import fabricate
import numpy as np
import pytest
import yaml
from attack import attack_in_turn
from attacked import all_refused, first_of, groups
from safetensors.numpy import save_file

from spectrum_bench.commands import ending, evaluate, report
from spectrum_bench.reporting import page  # noqa: F401  imported before children are
from spectrum_bench.scoring import evaluation  # noqa: F401

pytestmark = pytest.mark.slow

NAN, INF = float("nan"), float("inf")
TENS = list(zip("abcdefgh", "bcdefghi", strict=True))
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in TENS
)

# ---------------------------------------------------------------------------------------------------------------------
# What is done to a folder


def field(name, value):
    """A field of the first record; a dotted name goes down."""

    def change(folder):
        path = folder / "records.jsonl"
        first, *others = path.read_text().splitlines()
        record = json.loads(first)
        *above, last = name.split(".")
        node = record
        for key in above:
            node = node[key]
        node.pop(last, None) if value is ... else node.update({last: value})
        path.write_text("\n".join([json.dumps(record), *others, ""]))

    return change


def text(name, content):
    """A file with another content; a function makes it of the old one."""

    def change(folder):
        path = folder / name
        old = path.read_bytes() if path.is_file() else b""
        new = content(old) if callable(content) else content
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(new.encode("utf-8", "surrogatepass") if isinstance(new, str) else new)

    return change


def setting(key, value):
    def change(folder):
        path = folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        node = config
        *above, last = key.split(".")
        for each in above:
            node = node[each]
        node[last] = value
        path.write_text(yaml.safe_dump(config))

    return change


def summary(change_it):
    def change(folder):
        path = folder / "summary.json"
        content = json.loads(path.read_text())
        result = change_it(content)
        path.write_text(json.dumps(content if result is None else result))

    return change


def put(*keys, value):
    """A value below the keys of a dict."""

    def change(node):
        for key in keys[:-1]:
            node = node[key]
        node.pop(keys[-1]) if value is ... else node.update({keys[-1]: value})

    return change


def special(name, kind):
    """A pipe, a link, a folder in place of a file."""

    def change(folder):
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda p: p.symlink_to(p.name)}.get(
            kind, lambda p: p.symlink_to(kind)
        )(path)

    return change


def sample(content):
    """The first sample's file with another content, and its record with the hash of that."""

    def change(folder):
        record = json.loads((folder / "records.jsonl").read_text().splitlines()[0])
        path = folder / record["sample"]
        data = content(path) if callable(content) else content
        if data is not None:
            path.write_bytes(data)
            field("sha256", hashlib.sha256(data).hexdigest())(folder)

    return change


def png(width, height, more=b""):
    """The head of a PNG of a size, and data that would unpack to zeros."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    zeros = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", zeros) + chunk(b"IEND", b"")


def as_clip(content):
    """The first sample as a clip of this content."""

    def change(folder):
        (folder / "samples/x.mp4").write_bytes(content)
        field("sample", "samples/x.mp4")(folder)

    return change


def latents(make):
    """Latents of the first record, in both folders."""

    def change(folder):
        for each in (folder, folder.parent / "ref"):
            record = json.loads((each / "records.jsonl").read_text().splitlines()[0])
            path = each / "latents" / f"{record['id']}.safetensors"
            path.parent.mkdir(exist_ok=True)
            make(path)

    return change


def link_sample(target):
    def change(folder):
        record = json.loads((folder / "records.jsonl").read_text().splitlines()[0])
        path = folder / record["sample"]
        path.unlink()
        path.symlink_to(os.path.join(folder, target))

    return change


def twice(name):
    """The first data line of a file two times."""

    def double(old):
        lines = old.decode().splitlines(keepends=True)
        first = 1 if name.endswith(".csv") else 0
        return "".join([*lines[: first + 1], *lines[first:]])

    return text(name, double)


def cell(column, value):
    def change(old):
        head, first, *others = old.decode().splitlines()
        cells = first.split(",")
        cells[head.split(",").index(column)] = value
        return "\n".join([head, ",".join(cells), *others, ""])

    return change


BOMB = b"Comment\0\0" + zlib.compress(bytes(10_000_000))
TEXT = struct.pack(">I", len(BOMB)) + b"zTXt" + BOMB + struct.pack(">I", zlib.crc32(b"zTXt" + BOMB))

# ---------------------------------------------------------------------------------------------------------------------
# Cases: before evaluate

TYPES = {
    "id": [None, 5, [1], "", "../../x", "a/b", "x" * 100],
    "prompt_index": [None, "0", 0.5, -1, True, [0], 10**30, NAN],
    "prompt": [None, 5, ["a"], {}, True, "x" * 10**6, "\ud800"],
    "seed": [None, "0", -1, True, [1], 1e300],
    "sample": [None, 5, "", ".", "samples", "samples/..", "../ref/samples/x.png", "/etc/passwd", "../../../etc/passwd"],
    "model": [None, 5, ["x"], True],
    "algo": [None, 5, {}],
    "schedule": [None, 5],
    "forecaster": [None, []],
    "site": [None, 1.5],
    "num_inference_steps": [None, "50", 0, -1, True, 10**9, 49.5],
    "computed_steps": [None, 5, "0", [0, "1"], [True], [0, 0], [5, 1], [-1], [10**9], [[0]], {}],
    "nfe": [None, "14", NAN, -3, True, 1.5, [1]],
    "latency": [None, 5, [], {"total": 1.0}, {"nothing": 1.0}],
    "latency.total": [None, "1", NAN, INF, -1, True, ...],
    "latency.skipped_step": ["x", NAN, -1],
    "peak_memory_bytes": ["x", -1, True, 0.5],
    "cache_bytes": [None, "x", -1, True],
    "device": [None, 5],
    "versions": [None, [], {"torch": 5}, {"torch": None}],
    "git_sha": [None, 5],
    "alone": [None, 1, "yes"],
    "sha256": [5, True, "0" * 64],
    "sample_bytes": ["5", -1, True, 1.5],
    "code": [5, []],
    "schema": [0, 3, 99, "2", None, True],
    "stranger": [1],
}
CASES = {f"{name}={repr(value)[:30]}": field(name, value) for name, values in TYPES.items() for value in values}
CASES |= {f"{name} is missing": field(name, ...) for name in ("id", "prompt", "seed", "sample", "nfe", "latency")}
CASES |= {
    f"records.jsonl: {name}": text("records.jsonl", content)
    for name, content in {
        "empty": b"",
        "cut": lambda old: old[: len(old) // 2],
        "not UTF-8": b"\xff\xfe\x00",
        "BOM": lambda old: b"\xef\xbb\xbf" + old,
        "null": b"null\n",
        "a list": b"[]\n",
        "a number": b"5\n",
        "words": b"hello\n",
        "brackets": b"[" * 100_000,
        "objects": b'{"a":' * 100_000,
        "a huge number": b'{"id": ' + b"9" * 10_000 + b"}\n",
        "a key twice": lambda old: old.replace(b'{"id"', b'{"id": "x", "id"', 1),
        "NUL": b"\0" * 1000,
    }.items()
}
CASES |= {
    "a record twice": twice("records.jsonl"),
    "another record of a sample": text(
        "records.jsonl", lambda old: old + old.splitlines()[0].replace(b'"id": "', b'"id": "b')
    ),
}
CASES |= {
    f"records.jsonl is a {kind}": special("records.jsonl", kind) for kind in ("pipe", "folder", "loop", "/dev/zero")
}
CASES |= {f"config.yaml is a {kind}": special("config.yaml", kind) for kind in ("pipe", "folder", "loop", "/dev/zero")}
CASES |= {
    f"config.yaml: {name}": text("config.yaml", content)
    for name, content in {
        "empty": b"",
        "words": b"hello",
        "a list": b"- 1\n",
        "broken": b"a: [",
        "not UTF-8": b"\xff\xff",
        "laughs": LAUGHS,
        "laughs as the model": LAUGHS + "model: *i\n",
        "laughs as the name": LAUGHS + "exp_name: *i\n",
        "brackets": "a: " + "[" * 20_000,
        "indents": "".join(f"{' ' * i}a:\n" for i in range(700)),
        "huge": "a: " + "x" * 10**7,
        "objects": "!!python/object/apply:os.system ['touch canary']",
        "a module": "a: !!python/module:evil",
        "a date": "a: 2020-13-45",
        "a list as key": "? [1]\n: 2",
        "NUL": "a: \0",
        "surrogates": 'a: "\\ud800"',
    }.items()
}
SETTINGS = {
    "model": [[1], 5, "x"],
    "model.name": [5, [1], {}],
    "model.metrics": [5, "psnr", [5]],
    "model.fps": ["x", 0, -1, True, NAN, [8], 1e9],
    "model.judge": [5, [1]],
    "model.width": [128, "64", None, True],
    "runtime": [5, "x", [1]],
    "exp_name": [[1], {}, NAN],
    "schema": [None, 0, 3, "1", 1.5, [1], True],
}
CASES |= {f"{key}={value!r}": setting(key, value) for key, values in SETTINGS.items() for value in values}
CASES |= {
    "a sample is gone": lambda folder: next(folder.glob("samples/*")).unlink(),
    "a sample is empty": sample(b""),
    "a sample is words": sample(b"hello"),
    "a sample is cut": sample(lambda path: path.read_bytes()[:200]),
    "a sample is another's": link_sample("../ref/samples"),
    "a sample is a link out": link_sample("../ref/config.yaml"),
    "a sample is /etc/passwd": link_sample("/etc/passwd"),
    "a sample is /dev/zero": link_sample("/dev/zero"),
    "a sample is endless": sample(lambda path: path.unlink() or os.mkfifo(path)),
    "18,000 x 18,000 pixels": sample(png(18_000, 18_000)),
    "60,000 x 60,000 pixels": sample(png(60_000, 60_000)),
    "2^31 pixels wide": sample(png(2**31 - 1, 1)),
    "no pixel": sample(png(0, 0)),
    "a text that unpacks to 10 MB": sample(png(64, 64, TEXT)),
    "a JPEG": sample(b"\xff\xd8\xff\xe0" + bytes(100)),
    "a clip of words": as_clip(b"hello"),
    "an empty clip": as_clip(b""),
    "a clip that is a list": as_clip(b"ffconcat version 1.0\nfile /etc/passwd\n"),
    "a clip that is a web page": as_clip(b"<html></html>"),
    "a clip with a huge head": as_clip(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + struct.pack(">I", 2**31 - 1) + b"moov"),
    "latents of words": latents(lambda path: path.write_bytes(b"hello")),
    "no latents in them": latents(lambda path: save_file({"x": np.zeros((2, 2), np.float32)}, path)),
    "latents NaN": latents(lambda path: save_file({"latents": np.full((2, 2), NAN, np.float32)}, path)),
    "latents without steps": latents(lambda path: save_file({"latents": np.float32([1, 2])}, path)),
    "latents of texts": latents(lambda path: save_file({"latents": np.zeros((2, 2), np.uint8)}, path)),
    "latents endless": latents(os.mkfifo),
    "latents with a huge head": latents(lambda path: path.write_bytes(struct.pack("<Q", 2**62))),
}
# After evaluate, before report.
SCORED = {
    f"metrics.csv: {name}": text("metrics.csv", content)
    for name, content in {
        "edited": lambda old: cell("psnr", "99")(old),
        "inf": cell("psnr", "inf"),
        "nan": cell("psnr", "nan"),
        "words": cell("psnr", "high"),
        "an id": cell("id", "x"),
        "a key": cell("seed", "-1"),
        "cut": lambda old: old[:-20],
        "empty": b"",
        "its head alone": lambda old: old.splitlines()[0] + b"\n",
        "not UTF-8": b"\xff\xff",
        "NUL": b"\0" * 100,
        "a row less": lambda old: b"\n".join(old.splitlines()[:-1]) + b"\n",
    }.items()
}
SCORED |= {"metrics.csv: a row twice": twice("metrics.csv")}
SCORED |= {
    f"{name} is a {kind}": special(name, kind) for name in ("metrics.csv", "summary.json") for kind in ("pipe", "loop")
}
SCORED |= {
    f"{name} is gone": lambda folder, name=name: (folder / name).unlink() for name in ("metrics.csv", "summary.json")
}
SCORED |= {
    f"summary.json: {name}": text("summary.json", content)
    for name, content in {
        "empty": b"",
        "a list": b"[]",
        "null": b"null",
        "cut": lambda old: old[:100],
        "brackets": b"[" * 100_000,
        "BOM": lambda old: b"\xef\xbb\xbf" + old,
        "NaN": lambda old: old.replace(b'"samples": 2', b'"samples": NaN'),
        "huge": lambda old: old + b" " * 10**7,
    }.items()
}
WRONG = [
    (("anchors",), ...),
    (("anchors",), None),
    (("anchors",), []),
    (("anchors", "itself"), 5),
    (("anchors", "itself", "psnr"), "x"),
    (("metrics",), None),
    (("metrics",), []),
    (("metrics", "psnr"), 5),
    (("metrics", "psnr"), {}),
    (("metrics", "psnr", "mean"), "x"),
    (("metrics", "psnr", "interval"), 5),
    (("metrics", "ssim"), {"mean": 1.0, "interval": None, "n": 2, "unit": "", "higher_is_better": True}),
    (("latents",), 5),
    (("latents",), {"rmse": "x", "prompts": 1}),
    (("latents",), {"rmse": [1.0, None], "prompts": 1}),
    (("judge",), 5),
    (("reference",), None),
    (("reference",), {"path": "x"}),
    (("reference", "records_sha256"), "0" * 64),
    (("reference", "config_sha256"), "0" * 64),
    (("reference", "samples_sha256"), ...),
    (("records_sha256",), "0" * 64),
    (("records_sha256",), ...),
    (("config_sha256",), "0" * 64),
    (("samples_sha256",), "0" * 64),
    (("metrics_sha256",), "0" * 64),
    (("metrics_sha256",), ...),
    (("samples",), True),
    (("seeds",), None),
    (("versions",), {"x": 1}),
    (("schema",), 3),
    (("schema",), "2"),
    (("stranger",), 1),
]
SCORED |= {f"{'.'.join(keys)}={str(value)[:20]}": summary(put(*keys, value=value)) for keys, value in WRONG}
SCORED |= {
    "config.yaml changed": setting("note", "x"),
    "the reference's settings changed": lambda folder: setting("note", "x")(folder.parent / "ref"),
    "a picture without a hash changed": lambda folder: sorted(folder.glob("samples/*"))[0].write_bytes(
        sorted(folder.glob("samples/*"))[1].read_bytes()
    ),
    "records changed": text("records.jsonl", lambda old: old.replace(b'"total": ', b'"total": 1')),
}
FAILURES = {"words": b"hello", "a list": b"[]", "null": b'{"id": null}', "brackets": b"[" * 10**5, "empty": b""}
FAILURE = {"id": "x", "prompt_index": 0, "prompt": "a", "seed": 0, "reason": "b"}
FAILURES |= {
    f"{key}={value!r}": json.dumps(FAILURE | {key: value}).encode()
    for key, value in {"prompt_index": "0", "seed": None, "prompt": 5, "reason": [1], "id": True, "stranger": 1}.items()
}
SCORED |= {f"a failure: {name}": text("failures/x.json", content) for name, content in FAILURES.items()}
SCORED |= {"a failure is a pipe": special("failures/x.json", "pipe")}


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """A reference and a method, and the same when it is scored."""
    fresh, scored = tmp_path_factory.mktemp("fresh"), tmp_path_factory.mktemp("x") / "scored"
    prompts = fabricate.captions(2)
    pictures = fabricate.pictures(prompts)
    fabricate.experiment(fresh / "ref", prompts, pictures)
    fabricate.experiment(fresh / "fast", prompts, fabricate.noisy(pictures, 9), "fora", 14)
    shutil.copytree(fresh, scored)
    evaluate.main([str(scored / "fast"), f"reference={scored / 'ref'}", "metrics=psnr"])
    return {"fresh": fresh, "scored": scored}


def command(main, *words):
    sys.argv = ["command", *map(str, words)]
    ending.run(main)


def score(home):
    command(evaluate.main, home / "fast", f"reference={home / 'ref'}", "metrics=psnr")


def tell(home):
    command(report.main, home / "fast", f"reference={home / 'ref'}", f"out={home / 'out'}")


def try_it(homes, tmp_path, kind, change, work):
    return try_in_turn(homes, tmp_path, kind, {"it": change}, work)["it"]


def try_in_turn(homes, tmp_path, kind, changes, work):
    """The outcome of the work on a copy of the folders after each change."""
    copies = {name: tmp_path / f"{kind}{number}" for number, name in enumerate(changes)}
    for name, home in copies.items():
        shutil.copytree(homes[kind], home)
        changes[name](home / "fast")
    (ground := tmp_path / "ground").mkdir(exist_ok=True)
    works = {name: lambda home=home: work(home) for name, home in copies.items()}
    return attack_in_turn(works, ground, copies)


@pytest.mark.parametrize("names", groups(CASES), ids=first_of)
def test_evaluate_refuses(homes, tmp_path, names):
    outcomes = try_in_turn(homes, tmp_path, "fresh", {name: CASES[name] for name in names}, score)
    all_refused(outcomes)
    for name, outcome in outcomes.items():
        assert "passwd" not in outcome.words or "delete it" not in outcome.words, name


@pytest.mark.parametrize("names", groups(SCORED), ids=first_of)
def test_report_refuses(homes, tmp_path, names):
    all_refused(try_in_turn(homes, tmp_path, "scored", {name: SCORED[name] for name in names}, tell))


def test_whole_folders_go_through(homes, tmp_path):
    assert try_it(homes, tmp_path, "fresh", lambda folder: None, score).code == 0
    outcome = try_it(homes, tmp_path, "scored", lambda folder: None, tell)
    assert outcome.code == 0, outcome


def test_a_received_folder_instantiates_nothing(homes, tmp_path):
    """Whatever its settings name, they are read and never called."""
    node = {"_target_": "os.system", "command": f"touch {tmp_path}/canary"}

    def change(folder):
        for key in ("site", "schedule", "algo", "runtime", "hydra"):
            setting(key, node if key != "runtime" else {})(folder)
        setting("model.arguments", node)(folder.parent / "ref"), setting("model.arguments", node)(folder)

    assert try_it(homes, tmp_path, "fresh", change, score).code == 0
    assert not (tmp_path / "canary").exists()


def test_scores_of_the_first_schema_are_read(homes, tmp_path):
    """summary.json of commit 6771973 names no hash of metrics.csv: the means of one must be those of the other."""
    old = summary(lambda content: {k: v for k, v in content.items() if not hashed(k)} | {"reference": bare(content)})

    def edited(folder: Path):
        old(folder)
        text("metrics.csv", cell("psnr", "99"))(folder)

    outcomes = try_in_turn(homes, tmp_path, "scored", {"as it was": old, "edited": edited}, tell)
    assert outcomes["as it was"].code == 0, outcomes
    assert outcomes["edited"].verdict == "refused", outcomes


def hashed(key: str) -> bool:
    return key == "schema" or key.endswith("_sha256") and key != "records_sha256"


def bare(content: dict) -> dict:
    return {key: value for key, value in content["reference"].items() if not hashed(key)}
