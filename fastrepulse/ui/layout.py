"""The components of the page and their layout."""

from itertools import chain
from typing import Any

import gradio as gr

from fastrepulse.models import SCHEDULERS
from fastrepulse.models.shipped import Recommended
from fastrepulse.ui.batch import DIFFERS
from fastrepulse.ui.session import Kind, Pile

MAX_BATCH = 64
TITLES: dict[Kind, str] = {"repelled": "Repelled", "independent": "Independent, same noise"}
CHOOSE = "Click an image to choose it."
PILES: dict[Pile, str] = {"unlike": "Unlike these", "like": "Like these"}

CSS = """
.preview img { width: 100%; border-radius: 6px; }
.bar { background: #8884; border-radius: 4px; height: 8px; }
.bar div { background: #d95f02; border-radius: 4px; height: 8px; }
.caption-label { display: none !important; }
"""


def gallery(elem_id: str, label: str, columns: int, **settings: Any) -> gr.Gallery:
    """Returns a gallery with clickable thumbnails."""
    return gr.Gallery(
        elem_id=elem_id, label=label, columns=columns, allow_preview=False, **settings
    )


class Layout:
    """The components of the page, with an initial prompt and the settings for a model."""

    def __init__(self, prompt: str, settings: Recommended):
        self.tab = gr.State("")
        self.named = gr.Textbox(visible=False)
        self.shown, self.selected = gr.State(-1), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._lay_out_settings(prompt, settings)
            with gr.Column(scale=3, min_width=320):
                self._lay_out_images()
        with gr.Tab("Map"):
            gr.Markdown(
                "All images so far. Similar images lie close together; the last batch has orange "
                "frames. Click the map to add the nearest image to “Like these”."
            )
            self.map = gr.Image(
                elem_id="map",
                label="Map of all images",
                interactive=False,
                format="png",
                buttons=[],
            )
        with gr.Tab("History"):
            self.history = gallery("history", "All batches: click one to show it again", 8)
        with gr.Tab("Reproduce"):
            self.command = gr.Code(label="Command line", language="shell", wrap_lines=True)
            self.program = gr.Code(label="Python", language="python")

    def _lay_out_settings(self, prompt: str, settings: Recommended) -> None:
        self.prompt = gr.Textbox(prompt, label="Prompt", lines=2, max_length=2000)
        self.num_particles = gr.Slider(1, MAX_BATCH, 16, step=1, label="Number of images")
        self.strength = gr.Slider(
            0.0, 2.0, 1.0, step=0.05, label="Diversity", info="0: no repulsion. 1: recommended."
        )
        self.differ = gr.Radio(list(DIFFERS), value="everything", label="What should differ")
        self.compare = gr.Checkbox(True, label="Compare with independent images")
        with gr.Row():
            # Enabled when the browser has sent the tab's name
            self.draw = gr.Button("Draw", variant="primary", min_width=120, interactive=False)
            self.stop = gr.Button("Stop", variant="stop", min_width=80)
        with gr.Accordion("Advanced", open=False):
            self.seed = gr.Textbox("", label="Seed (empty: a random seed)", max_length=20)
            self.steps = gr.Slider(1, 100, settings.num_inference_steps, step=1, label="Steps")
            self.guidance_scale = gr.Slider(
                1.0, 15.0, settings.guidance_scale, step=0.5, label="Guidance scale"
            )
            self.negative_prompt = gr.Textbox("", label="Negative prompt", max_length=2000)
            self.scheduler = gr.Dropdown(list(SCHEDULERS), value="euler", label="Scheduler")
        self.piles: dict[Pile, tuple[gr.Markdown, gr.Gallery]] = {}
        small: dict[str, Any] = {"show_label": False, "fit_columns": False, "height": 110}
        for pile, title in PILES.items():
            heading = gr.Markdown(f"**{title}**", visible=False)
            self.piles[pile] = heading, gallery(pile, title, 5, **small, buttons=[], visible=False)
        self.forget = gr.Button("Remove these images", size="sm", visible=False)
        with gr.Accordion("Images from disk", open=False):
            self.files = gr.File(
                elem_id="files",
                label="Drop images here",
                file_count="multiple",
                file_types=["image"],
            )
            with gr.Row():
                self.take = {
                    pile: gr.Button(f"{title.split()[0]} these files", size="sm", min_width=120)
                    for pile, title in PILES.items()
                }

    def _lay_out_images(self) -> None:
        self.progress = gr.HTML("", label="Progress")
        self.headings: dict[Kind, gr.Markdown] = {}
        self.previews: dict[Kind, gr.HTML] = {}
        self.galleries: dict[Kind, gr.Gallery] = {}
        large: dict[str, Any] = {"show_label": False, "height": "auto", "object_fit": "contain"}
        with gr.Row():
            for kind, title in TITLES.items():
                with gr.Column(min_width=280):
                    self.headings[kind] = gr.Markdown(f"### {title}")
                    self.previews[kind] = gr.HTML("", elem_classes="preview", visible=False)
                    label = f"{title}: click an image to choose it"
                    self.galleries[kind] = gallery(
                        kind, label, 4, **large, format="png", buttons=[]
                    )
        self.chosen = gr.Markdown(CHOOSE)
        with gr.Row():
            self.choose = {
                pile: gr.Button(f"More {pile} it", size="sm", min_width=120) for pile in PILES
            }

    def settings(self) -> list[gr.Component]:
        """Returns the inputs of a batch, in the order of the arguments of `Page._draw`."""
        first = [self.prompt, self.num_particles, self.differ, self.strength, self.seed]
        advanced = [self.steps, self.guidance_scale, self.negative_prompt, self.scheduler]
        return [*first, *advanced, self.compare]

    def outputs(self) -> list[gr.Component]:
        """Returns the outputs that show a session."""
        kinds = [*self.headings.values(), *self.previews.values(), *self.galleries.values()]
        piles = [*chain(*self.piles.values()), self.forget]
        sheets = [self.map, self.history, self.command, self.program]
        state = [self.shown, self.selected, self.chosen, self.tab]
        return [self.progress, *kinds, *piles, *sheets, *state]
