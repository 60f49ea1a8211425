"""The page's server on a machine behind a proxy."""

import os
import subprocess
import sys
import urllib.request

import pytest

from fastrepulse import load_model

pytest.importorskip("gradio")
NOWHERE = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("variable", "proxy"),
    [
        ("http_proxy", f"http://{NOWHERE}"),
        ("ALL_PROXY", f"http://{NOWHERE}"),
        ("all_proxy", f"socks5://{NOWHERE}"),
    ],
)
def test_the_page_opens_without_the_proxy_which_stays_set(variable, proxy, monkeypatch, tmp_path):
    from fastrepulse.ui import launch

    monkeypatch.setenv(variable, proxy)
    before = urllib.request.getproxies()
    page, address = launch(load_model(), None, tmp_path, "a robot", None, False, block=False)
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert direct.open(address, timeout=10).status == 200
    finally:
        page.blocks.close()
    assert urllib.request.getproxies() == before


def test_the_module_can_be_imported_behind_a_socks_proxy():
    environment = os.environ | {"all_proxy": f"socks5://{NOWHERE}"}
    program = "import fastrepulse.ui.serve"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
