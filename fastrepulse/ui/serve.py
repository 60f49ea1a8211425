"""The page served, to a browser on this machine."""

from pathlib import Path

import gradio as gr

from fastrepulse.models import Model
from fastrepulse.ui.layout import CSS
from fastrepulse.ui.page import Page

UPLOAD = "20mb"
"""The largest file that is taken."""


def launch(
    model: Model,
    model_name: str | None,
    folder: Path,
    prompt: str,
    port: int | None,
    open_browser: bool,
    block: bool = True,
) -> tuple[Page, str]:
    """Serves the page on this machine alone; returns it and its address.

    Args:
        model: What draws.
        model_name: Its folder, file or hub id; None for the shipped one.
        folder: Where pictures go.
        prompt: What stands in the field at first.
        port: Where to listen; by default the first free one from 7860.
        open_browser: Whether to open the page.
        block: Whether to wait until it is closed.
    """
    page = Page(model, model_name, folder, prompt)
    _, address, _ = page.blocks.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        inbrowser=open_browser,
        prevent_thread_lock=not block,
        max_file_size=UPLOAD,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
    )
    return page, address
