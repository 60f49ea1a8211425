"""Models from the hub, downloaded from a local server that imitates it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from safetensors.torch import load_file, save_file

from fastrepulse import models

NAME = "somebody/a-model"
COMMIT = "0123456789abcdef" * 2 + "01234567"
SCRIPT = """
import json, sys
import torch
from fastrepulse import models
for name in sys.argv[1:]:
    try:
        model = models.load_model(name, dtype=torch.float32)
    except OSError as error:
        print(error)
        sys.exit(3)
    print(json.dumps({"name": model.name, "variants": model.variants, "dtype": str(model.dtype)}))
"""


def server_of(folder):
    """Starts a server with the hub's API; returns it with the list of requested files."""
    asked = []
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, body, kind="application/json", **headers):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            prefix = f"/{NAME}/resolve/{COMMIT}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in files:
                name = path.removeprefix(prefix)
                body = files[name].read_bytes()
                if self.command == "GET":
                    asked.append(name)
                digest = hashlib.sha256(body).hexdigest()
                return self.answer(
                    body, "application/octet-stream", ETag=f'"{digest}"', X_Repo_Commit=COMMIT
                )
            if path.startswith(f"/api/models/{NAME}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                    for name, file in files.items()
                ]
                return self.answer(json.dumps(tree).encode())
            if path.startswith(f"/api/models/{NAME}"):
                siblings = [{"rfilename": name} for name in files]
                known = {"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings}
                return self.answer(json.dumps({**known, "tags": [], "private": False}).encode())
            self.send_error(404)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, asked


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository with both variants of each part, except for a UNet in fp16 only."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    shutil.copytree(models.DEFAULT_MODEL, folder)
    for file in list(folder.rglob("*.safetensors")):
        half = file.with_suffix(".fp16.safetensors")
        tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(tensors, half, {"format": "pt"})
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (folder / "checkpoint.safetensors").write_bytes(b"ten gigabytes that nobody asked for")
    return folder


def load(cache, address, *names, offline=False):
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    command = [sys.executable, "-c", SCRIPT, *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_best_variant_is_downloaded_once_and_another_name_is_refused(repository, tmp_path):
    server, asked = server_of(repository)
    address = f"http://127.0.0.1:{server.server_port}"
    run = load(tmp_path, address, NAME)
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout.splitlines()[-1])
    assert loaded == {"name": NAME, "variants": {"unet": "fp16"}, "dtype": "torch.float32"}
    weights = sorted(name for name in asked if name.endswith((".safetensors", ".bin")))
    assert weights == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    server.shutdown()
    # A name that is neither here nor on the hub, for example a folder whose path is mistyped
    again = load(tmp_path, address, NAME, "somebody/no-model", offline=True)
    assert again.returncode == 3, again.stderr
    found, refused = again.stdout.split("\n", 1)
    assert json.loads(found) == loaded
    expected = (
        "model must be a folder in diffusers' layout, a safetensors file or a hub id 'owner/name', "
        "got 'somebody/no-model': there is no folder of that name here, and the download from the "
        "hub failed:"
    )
    assert refused.startswith(expected)
