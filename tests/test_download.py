"""download.py as a user types it, against a small hub on this machine."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import yaml
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status
from safetensors.numpy import save

from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling import catalogue, downloads, remote
from spectrum_bench.sampling.catalogue import HubEntry, WebEntry, parse, read_catalogue
from spectrum_bench.sampling.models import find_weights
from spectrum_bench.scoring.evaluation import versions
from spectrum_bench.scoring.metrics import METRICS, together, weights

FLUX = "black-forest-labs/FLUX.1-dev"
INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "safety_checker": [None, None],
}
TENSOR = save({"weight": np.arange(50_000, dtype=np.float32)})
SHARD = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
NEEDED = {
    "model_index.json": json.dumps(INDEX).encode(),
    "scheduler/scheduler_config.json": b'{"a": 1}',  # no two are the same: the cache would keep one of them
    "tokenizer/tokenizer_config.json": b'{"e": 1}',
    "tokenizer/vocab.json": b'{"b": 1}',
    "tokenizer/merges.txt": b"#version: 0.2\n",
    "tokenizer/spiece.model": b"pieces",
    "transformer/config.json": b'{"c": 1}',
    SHARD: TENSOR,
    "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": save({"bias": np.zeros(8)}),
    "transformer/diffusion_pytorch_model.safetensors.index.json": b'{"d": 1}',
}
USELESS = [
    "README.md",
    "flux1-dev.safetensors",
    "ae.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "tokenizer/tokenization.py",
    "transformer/pytorch_model.bin",
    "transformer/pytorch_model.bin.index.json",
    "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
    "transformer/old/model.safetensors",
    "transformer/model.onnx",
    "transformer/flax_model.msgpack",
]


class Hub:
    """Repositories and plain files, and what was asked for: (method, path, Range, bytes sent)."""

    def __init__(self):
        self.repos, self.gated, self.files, self.sizes = {}, set(), {}, {}
        self.cut, self.stall, self.stalled = set(), set(), threading.Event()
        self.asked = []

    def commit(self, repo: str) -> str:
        return hashlib.sha1(repo.encode()).hexdigest()

    def info(self, repo: str) -> dict:
        files = [
            {"rfilename": name, "size": self.sizes.get(name, len(data)), "blobId": hashlib.sha1(data).hexdigest()}
            for name, data in self.repos[repo].items()
        ]
        return {"id": repo, "sha": self.commit(repo), "gated": repo in self.gated and "auto", "siblings": files}

    def url_of(self, name: str) -> str:
        return f"/{FLUX}/resolve/{self.commit(FLUX)}/{name}"

    def sent(self) -> list[str]:
        """Names of the files of which content was sent."""
        paths = [path for method, path, _, sent in self.asked if method == "GET" and sent and "/resolve/" in path]
        return [path.split("/resolve/")[1].partition("/")[2] for path in paths]


def handler(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(send=False)

        def do_GET(self):
            self.answer(send=True)

        def answer(self, send: bool):
            path = self.path.split("?")[0]
            repo, _, name = path[1:].partition("/resolve/")
            name = name.partition("/")[2]
            asked, _, pinned = path[12:].partition("/revision/")
            if path.startswith("/api/models/") and asked in hub.repos:
                self.reply(json.dumps(hub.info(asked) | ({"sha": pinned} if pinned else {})).encode(), send)
            elif path in hub.files:
                self.reply(hub.files[path], send)
            elif repo in hub.gated and self.headers.get("Authorization") != "Bearer allowed":
                self.reply(b"", send, status=401, **{"X-Error-Code": "GatedRepo"})
            elif name in hub.repos.get(repo, {}):
                data = hub.repos[repo][name]
                commit = hub.commit(repo) if "/resolve/main/" in path else path.split("/resolve/")[1].split("/")[0]
                self.reply(data, send, ETag=f'"{hashlib.sha1(data).hexdigest()}"', **{"X-Repo-Commit": commit})
            else:
                self.reply(b"", send, status=404, **{"X-Error-Code": "RepoNotFound"})

        def reply(self, data: bytes, send: bool, status: int = 200, **headers):
            begin = self.headers.get("Range")
            part = data[int(begin.removeprefix("bytes=").rstrip("-")) :] if begin else data
            if begin:
                status, headers["Content-Range"] = 206, f"bytes {len(data) - len(part)}-{len(data) - 1}/{len(data)}"
            self.send_response(status)
            for key, value in {"Content-Length": len(part), **headers}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if send and (self.path in hub.cut or self.path in hub.stall):
                part = part[: len(part) // 2]
            if send:
                self.wfile.write(part)
            hub.asked.append((self.command, self.path, begin, len(part) * send))
            if send and self.path in hub.stall:
                hub.stalled.set()
                threading.Event().wait(20)
            if send and self.path in hub.cut:
                hub.cut.remove(self.path)
                self.close_connection = True

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def hub():
    hub = Hub()
    hub.repos[FLUX] = {**dict.fromkeys(USELESS, b"useless"), **NEEDED}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkout(tmp_path):
    """A copy of what download.py needs of this repository, for tests to write into."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "src/spectrum_bench", folder / "src/spectrum_bench", ignore=shutil.ignore_patterns("__pyc*"))
    (folder / "configs/model").mkdir(parents=True)
    for name in ("download.py", "configs/base.yaml", "configs/downloads.yaml", "configs/model/flux.yaml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def start(hub, checkout, tmp_path):
    """Start download.py: start("model=flux", TORCH_HOME=...)."""

    def start(*words, **env):
        paths = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "PATH": os.defpath}
        env = {**paths, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "OMP_NUM_THREADS": "1", **env}
        command = [sys.executable, str(checkout / "download.py"), *words]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def download(start):
    """Run download.py to its end: (exit code, lines of stdout, error lines of stderr)."""

    def download(*words, **env):
        process = start(*words, **env)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, out.splitlines(), [line for line in err.splitlines() if line.startswith("error")]

    return download


def offline_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    return find_weights(FLUX)


def test_a_model_is_what_its_pipeline_needs_and_is_then_found_offline(hub, download, tmp_path, monkeypatch):
    code, out, errors = download("model=flux")
    assert (code, errors) == (0, []) and out[-1] == "model=flux: all here"
    assert sorted(set(hub.sent())) == sorted(NEEDED)
    folder = offline_weights(monkeypatch, tmp_path)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.is_file()) == sorted(NEEDED)
    assert (folder / SHARD).read_bytes() == TENSOR

    hub.asked.clear()
    code, out, errors = download("model=flux")
    assert code == 0 and "0 B missing" in out[0]
    assert hub.sent() == ["model_index.json"]  # which says what is needed


@pytest.mark.slow
def test_a_model_is_fetched_at_the_commit_that_its_yaml_names(hub, download, checkout, tmp_path, monkeypatch):
    commit = "0123456789abcdef" * 2 + "01234567"
    path = checkout / "configs/model/flux.yaml"
    path.write_text(path.read_text() + f"revision: {commit}\n")
    code, out, errors = download("model=flux")
    assert (code, errors) == (0, []) and out[0].startswith(f"model=flux from {FLUX} at {commit}: ")
    assert all(f"/resolve/{commit}/" in path for _, path, _, sent in hub.asked if "/resolve/" in path)
    with pytest.raises(UserError, match="not on this machine"):  # nobody asked for the newest commit
        offline_weights(monkeypatch, tmp_path)
    assert find_weights(FLUX, commit).name == commit
    with pytest.raises(UserError, match=f"at commit {commit[::-1]} are not on this machine"):
        find_weights(FLUX, commit[::-1])
    with pytest.raises(UserError, match="is a folder: leave it out"):
        find_weights(str(tmp_path), commit)


def test_dry_run_lists_sizes_and_fetches_nothing(hub, download, tmp_path):
    code, out, errors = download("model=flux", "--dry-run")
    assert (code, errors) == (0, [])
    total = remote.human(sum(map(len, NEEDED.values())))
    assert out[0] == f"model=flux from {FLUX}: {total} in {len(NEEDED)} files, {total} missing"
    assert f"  missing   200 kB  {SHARD}" in out
    assert len(out) == 1 + len(NEEDED)
    assert hub.sent() == ["model_index.json"]
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_dropped_connection_is_taken_up_where_it_broke(hub, download, tmp_path, monkeypatch):
    hub.repos[FLUX][SHARD] = data = save({"weight": np.zeros(6_000_000, np.float32)})
    hub.cut.add(hub.url_of(SHARD))
    assert download("model=flux")[0] == 0
    chunk = constants.DOWNLOAD_CHUNK_SIZE  # what the hub's client writes at a time
    asked = [(begin, sent) for method, path, begin, sent in hub.asked if path == hub.url_of(SHARD) and method == "GET"]
    assert asked == [(None, len(data) // 2), (f"bytes={chunk}-", len(data) - chunk)]
    assert (offline_weights(monkeypatch, tmp_path) / SHARD).read_bytes() == data


@pytest.mark.slow
def test_after_ctrl_c_whole_files_are_kept(hub, start, download, tmp_path, monkeypatch):
    hub.stall.add(hub.url_of(SHARD))
    process = start("model=flux")
    assert hub.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=100)[1]
    assert process.returncode == 130 and "the same command goes on from here" in err and "Traceback" not in err
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    with pytest.raises(UserError, match="not on this machine"):
        offline_weights(monkeypatch, tmp_path)

    whole = set(hub.sent()) - {"model_index.json", SHARD}
    assert whole
    hub.stall.clear()
    hub.asked.clear()
    assert download("model=flux")[0] == 0
    assert not whole & set(hub.sent())
    offline_weights(monkeypatch, tmp_path)


@pytest.mark.slow
def test_a_gated_model_says_how_to_log_in(hub, download):
    hub.gated.add(FLUX)
    code, out, errors = download("model=flux")
    total = remote.human(sum(map(len, NEEDED.values())))
    listed = f"model=flux from {FLUX} (gated): {total} in {len(NEEDED)} files, {total} missing"
    login = f"{FLUX} is gated: accept its licence on {hub.url}/{FLUX}, then hf auth login"
    assert (code, out, errors) == (1, [listed], [f"error: model=flux: {login}"])
    code, out, errors = download("model=flux", "--dry-run")  # needs no account
    assert (code, errors) == (0, []) and (out[0], out[-1]) == (listed, f"  {login}")
    assert {line.split()[-1] for line in out[1:-1]} == set(NEEDED) and hub.sent() == []


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_fetched(hub, download):
    hub.sizes[SHARD] = 10**16
    code, _, errors = download("model=flux")
    assert code == 1 and len(errors) == 1 and "is too small by" in errors[0] and "10 PB to fetch" in errors[0]
    assert hub.sent() == ["model_index.json"]


def test_what_has_come_already_needs_no_room(tmp_path, monkeypatch):
    file = remote.WebFile("http://a/b.pt", tmp_path / "b.pt", 1000, "")
    file.part.write_bytes(b"a" * 900)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    remote.check_space([file])
    file.part.write_bytes(b"a" * 899)
    with pytest.raises(UserError, match="too small by 1 B"):
        remote.check_space([file])


@pytest.mark.slow
def test_one_failure_does_not_lose_the_others(hub, start, checkout, tmp_path, monkeypatch):
    for name, repo in (("pickled", "a/pickled"), ("nowhere", "a/nowhere")):
        (checkout / f"configs/model/{name}.yaml").write_text(f"name: {name}\nrepo: {repo}\n")
    hub.repos["a/pickled"] = {name: b"{}" for name in ("scheduler/a.json", "tokenizer/a.json", "transformer/a.bin")}
    hub.repos["a/pickled"]["model_index.json"] = NEEDED["model_index.json"]
    process = start("model=nowhere,pickled,flux")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "model=flux: all here" in out
    lines = [line for line in err.splitlines() if line.startswith(("error", "failed"))]
    assert lines[0].startswith(f"error: model=nowhere: {hub.url} shows you no repository a/nowhere")
    assert lines[1].startswith("error: model=pickled: its transformer has pickled weights only")
    assert lines[2].startswith("failed: model=nowhere, model=pickled") and len(lines) == 3
    assert not [path for path in hub.sent() if path.endswith(".bin")]
    offline_weights(monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "env, message",
    [({"HF_ENDPOINT": "http://127.0.0.1:9"}, "no connection"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_no_network_is_one_line(download, env, message):
    code, _, errors = download("model=flux", **env)
    assert code == 1 and len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize(
    "url, status, headers, message",
    [
        ("{hub}/a/b", 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "refuses your token"),
        ("{hub}/a/b", 403, {}, "refuses your token"),
        ("{hub}/a/b", 403, {"X-Error-Code": "GatedRepo"}, "accept its licence on {hub}/a/b as the account that is"),
        ("{hub}/a/b", 404, {"X-Error-Code": "RepoNotFound"}, "{hub} shows you no repository a/b"),
        ("https://web.test", 403, {}, "https://web.test/resolve/main/c answers 403: try again later"),
    ],
)
def test_what_a_server_refuses_is_explained(url, status, headers, message):
    request = httpx2.Request("GET", url.format(**catalogue.places()) + "/resolve/main/c?signature=long")
    with pytest.raises(HfHubHTTPError) as refused:
        hf_raise_for_status(httpx2.Response(status, headers=headers, request=request))
    assert message.format(**catalogue.places()) in remote.explain(refused.value)


@pytest.mark.slow
def test_prompts_come_with_their_origin_and_only_if_the_checksum_is_right(hub, download, checkout):
    path, listed = "/lists/drawbench.txt", b"A red car.\n\nTwo cats \n"
    digest = hashlib.sha256(listed).hexdigest()

    def pin(sha256):
        entry = {"url": "{hub}" + path, "size": len(listed), "sha256": sha256}
        (checkout / "configs/downloads.yaml").write_text(yaml.safe_dump({"prompts": {"drawbench": entry}}))

    txt, part = checkout / "prompts/drawbench.txt", checkout / "prompts/drawbench.txt.part"
    hub.files[path] = listed.replace(b"red", b"bad")
    pin(digest)
    code, _, errors = download("prompts=drawbench")
    assert code == 1 and len(errors) == 1 and f"not {digest[:8]}" in errors[0]
    assert not list(checkout.glob("prompts/*"))

    hub.files[path] = listed
    part.write_bytes(listed[:9])  # as an interrupted run leaves it
    assert download("prompts=all")[0] == 0
    assert hub.asked[-1][2:] == ("bytes=9-", len(listed) - 9)
    assert txt.read_bytes() == listed and not part.exists()
    assert json.loads(txt.with_suffix(".json").read_text()) == {"url": hub.url + path, "sha256": digest, "prompts": 2}

    pin("0" * 64)  # or the list was edited: it is the user's now
    code, _, errors = download("prompts=drawbench")
    assert code == 1 and "was edited or is damaged" in errors[0] and txt.read_bytes() == listed


METRIC = """
from spectrum_bench.sampling.catalogue import HubEntry, WebEntry
WEIGHTS = {{"toy": (
    WebEntry("{{hub}}/a/weights.pth", "{{torch}}/hub/checkpoints", 7, "{digest}"),
    HubEntry("timm/clip", "open_clip_model.safetensors"),
)}}
"""
SCRIPT = """
# /// script
# dependencies = []
# [[tool.spectrum-bench.weights]]
# url = "{{hub}}/a/weights.pth"
# to = "{{vbench}}/toy"
# size = 7
# sha256 = "{digest}"
# ///
"""


@pytest.mark.slow
def test_metrics_go_to_where_they_are_looked_for(hub, download, checkout, tmp_path):
    """One of each kind, which declare their weights themselves."""
    digest = hashlib.sha256(b"weights").hexdigest()
    hub.files["/a/weights.pth"] = b"weights"
    hub.repos["timm/clip"] = {"open_clip_model.safetensors": TENSOR, "open_clip_pytorch_model.bin": b"pickle"}
    folder = checkout / "src/spectrum_bench/scoring/metrics"
    (folder / "toy.py").write_text(METRIC.format(digest=digest))
    (folder / "isolated/score_alone.py").write_text(SCRIPT.format(digest=digest))
    entries = 'Metric("toy", "paired", "", True, "toy:make"), Metric("alone", "files", "", True, environment="alone")'
    listed = (folder / "__init__.py").read_text()
    (folder / "__init__.py").write_text(listed.replace("for metric in (", f"for metric in ({entries},"))
    places = {"TORCH_HOME": str(tmp_path / "torch"), "VBENCH_CACHE_DIR": str(tmp_path / "vbench")}
    code, out, errors = download("metrics=alone,toy", **places)
    assert (code, errors) == (0, []) and out[-2:] == ["metrics=alone: all here", "metrics=toy: all here"]
    assert (tmp_path / "torch/hub/checkpoints/weights.pth").read_bytes() == b"weights"
    assert (tmp_path / "vbench/toy/weights.pth").read_bytes() == b"weights"
    snapshot = tmp_path / "hf/hub/models--timm--clip"
    commit = (snapshot / "refs/main").read_text()
    assert (snapshot / "snapshots" / commit / "open_clip_model.safetensors").read_bytes() == TENSOR
    assert not [path for path in hub.sent() if path.endswith(".bin")]


@pytest.mark.parametrize(
    "word, message",
    [
        ("model=fluks", r"there is no model=fluks \(did you mean flux\?\); choose of .*flux.*, all"),
        ("model=tiny-flux", "there is no model=tiny-flux to fetch: its weights are in this repository"),
        ("prompts=draw", "choose of drawbench, coco, vbench, geneval, all"),
        (
            "metrics=fvd",
            "choose of lpips, .*dino, clip, clip_g, pickscore, hpsv2, geneval, imagereward, musiq, clipiqa, fid, .*all",
        ),
        ("metrics=", "choose of lpips"),
        ("weights=flux", "cannot read weights=flux: there is model=, prompts=, metrics= and --dry-run"),
        ("--dryrun", "cannot read --dryrun"),
        ("--dry-run", "nothing to fetch"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(word, message):
    with pytest.raises(UserError, match=message):
        parse([word], read_catalogue(weights()))


def test_words_stand_for_names():
    everything = read_catalogue(weights())
    wanted, dry_run = parse(["prompts=all", "metrics=clip,lpips,clip", "--dry-run"], everything)
    assert dry_run and wanted == [("prompts", n) for n in ("drawbench", "coco", "vbench", "geneval")] + [
        ("metrics", "clip"), ("metrics", "lpips"),
    ]  # fmt: skip
    assert ("model", "flux") in parse(["model=all"], everything)[0]


@pytest.mark.slow
def test_help_says_what_there_is():
    words = [sys.executable, str(ROOT / "download.py"), "--help"]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (
        "flux" in out
        and "drawbench, coco, vbench" in out
        and "lpips, lpips_vgg, lpips_spatial, tlpips, dino, clip" in out
        and "example:" in out
    )


def test_the_plain_weights_unless_the_model_names_a_variant():
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    plain, half = (f"unet/diffusion_pytorch_model{v}.safetensors" for v in ("", ".fp16"))
    pick = downloads.pipeline_files
    assert pick([half, plain], index) == [plain, "model_index.json"]
    assert pick([half, plain], index, "fp16") == [half, "model_index.json"]
    assert pick([plain], index, "fp16") == [plain, "model_index.json"]
    shards = [f"unet/model{v}-0000{i}-of-00002.safetensors" for v in ("", ".fp16") for i in (1, 2)]
    indices = [f"unet/model.safetensors.index{v}.json" for v in ("", ".fp16")]
    assert set(pick([*shards, *indices], index, "fp16")[:-1]) == {*shards[2:], indices[1]}
    with pytest.raises(UserError, match="no plain weights: write variant: fp16"):
        pick([half], index)
    with pytest.raises(UserError, match="names unet, of which it has no file"):
        pick(["vae/config.json"], index)


def test_the_catalogue_is_complete():
    everything = read_catalogue(weights())
    entries = [*everything.prompts.values(), *(e for entries in everything.metrics.values() for e in entries)]
    for entry in entries:
        if isinstance(entry, WebEntry):
            assert entry.source.startswith(("https://", catalogue.places()["hub"])) and entry.size > 0
            assert len(bytes.fromhex(entry.sha256)) == 32 and entry.path.is_absolute()
            digits = re.search(r"-([0-9a-f]{8})\.pth$", entry.url)  # PyTorch's rule for names
            assert not digits or entry.sha256.startswith(digits[1])
    weightless = {name for name, metric in METRICS.items() if not metric.weights()}
    assert {"psnr", "ssim", "caption"} <= weightless and not {"lpips", "clip", "vbench"} & weightless
    assert set(everything.metrics) == set(METRICS) - weightless - {
        "vbench_standard",
        "imagereward_512",
        "kid",
    }  # as others
    assert METRICS["vbench_standard"].weights() == METRICS["vbench"].weights()


def test_metrics_of_a_paper_and_those_that_share_weights_have_names_too():
    """By hand: what as:freqca and as:toca read, and what ImageReward with 512 tokens does."""
    everything = read_catalogue(weights(), together())
    wanted, _ = parse(["metrics=as:freqca,kid,lpips"], everything)
    assert [name for _, name in wanted] == ["lpips", "clip_g", "imagereward", "fid"]
    assert parse(["metrics=as:toca"], everything)[0] == [("metrics", "clip"), ("metrics", "vbench")]
    assert parse(["metrics=imagereward_512"], everything)[0] == [("metrics", "imagereward")]
    with pytest.raises(UserError, match="there is no metrics=as:nobody; choose of"):
        parse(["metrics=as:nobody"], everything)


def test_content_of_the_hub_is_compared_with_its_list(tmp_path, monkeypatch):
    """As `blob` of large files is their sha256."""
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"right")
    monkeypatch.setattr(remote, "hf_hub_download", lambda *_, **__: str(path))
    digest = hashlib.sha256(b"right").hexdigest()
    remote.HubFile("a/b", "vocab.txt", 5, "c" * 40, digest, True).fetch()
    path.write_bytes(b"wrong")
    with pytest.raises(UserError, match="a/b: vocab.txt has another sha256"):
        remote.HubFile("a/b", "vocab.txt", 5, "c" * 40, digest, True).fetch()
    assert not path.exists()


def test_pinned_weights_of_a_metric_are_of_that_commit_and_checksum(monkeypatch):
    """Asked of the hub's list, before anything is fetched."""
    file = SimpleNamespace(rfilename="a.safetensors", size=5, lfs=SimpleNamespace(sha256="a" * 64))
    api = SimpleNamespace(model_info=lambda repo, revision, **_: SimpleNamespace(siblings=[file], sha=revision))
    monkeypatch.setattr(downloads, "HfApi", lambda: api)

    def files(sha256):
        entry = HubEntry("a/b", "a.safetensors", "c" * 40, sha256)
        return downloads.plan_metric("toy", catalogue.Catalogue({}, {}, {"toy": (entry,)})).files

    (pinned,) = files("a" * 64)
    (_, listed) = downloads.describe(downloads.make_plan("metrics=toy", [pinned]), every_file=True)
    assert listed.endswith(f"a.safetensors  commit {'c' * 40} sha256 {'a' * 64}")  # so that anyone can pin it
    assert (pinned.commit, pinned.blob, pinned.last) == ("c" * 40, "a" * 64, False)
    with pytest.raises(UserError, match="a/b has another a.safetensors than metrics=toy names"):
        files("b" * 64)


def test_scores_name_the_commit_of_their_weights(tmp_path, monkeypatch):
    """Whose repository is not pinned, because nobody could tell its checksum here."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    entry = HubEntry("laion/CLIP-ViT-g-14-laion2B-s12B-b42K", "open_clip_model.safetensors")
    assert entry.commit is None and entry.repo not in versions([METRICS["clip_g"]])
    folder = tmp_path / "models--laion--CLIP-ViT-g-14-laion2B-s12B-b42K"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("c" * 40)
    (folder / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("c" * 40) / entry.file).write_bytes(b"")
    monkeypatch.setattr(catalogue, "try_to_load_from_cache", partial(try_to_load_from_cache, cache_dir=tmp_path))
    assert versions([METRICS["clip_g"]])[entry.repo] == "c" * 40
