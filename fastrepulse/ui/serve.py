"""Starts the page's local web server."""

import webbrowser
from pathlib import Path

import gradio as gr

from fastrepulse.models import Model
from fastrepulse.ui.layout import CSS
from fastrepulse.ui.page import Page
from fastrepulse.ui.proxies import no_proxy

MAX_FILE_SIZE = "20mb"


def launch(
    model: Model,
    model_name: str | None,
    folder: Path,
    prompt: str,
    port: int | None,
    open_browser: bool,
    block: bool = True,
) -> tuple[Page, str]:
    """Serves the page on this machine only; returns the page and its address.

    Args:
        model: The model.
        model_name: Folder, file or hub id of the model; None for the shipped model.
        folder: Folder for the images.
        prompt: Initial prompt.
        port: Port to listen on. Default: the first free port from 7860.
        open_browser: Whether to open the page in a browser.
        block: Whether to wait until the server stops.
    """
    page = Page(model, model_name, folder, prompt)
    with no_proxy():
        _, address, _ = page.blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            max_file_size=MAX_FILE_SIZE,
            footer_links=[],
            ssr_mode=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
        )
    if open_browser:
        webbrowser.open(address)
    if block:
        page.blocks.block_thread()
    return page, address
