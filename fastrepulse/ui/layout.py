"""What stands where on the page."""

from itertools import chain

import gradio as gr

from fastrepulse.models import SCHEDULERS
from fastrepulse.sampling.sample import DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS
from fastrepulse.ui.batch import DIFFERS
from fastrepulse.ui.session import Kind, Pile

MOST_DRAWN = 64
"""Pictures of a batch."""
TITLES: dict[Kind, str] = {"repelled": "Different", "independent": "Independent, the same noise"}
CHOOSE = "Click on a picture to choose it."
PILES: dict[Pile, str] = {"unlike": "Unlike these", "like": "Like these"}

CSS = """
.preview img { width: 100%; border-radius: 6px; }
.bar { background: #8884; border-radius: 4px; height: 8px; }
.bar div { background: #d95f02; border-radius: 4px; height: 8px; }
.caption-label { display: none !important; }
"""


class Layout:
    """The components of the page, laid out where they are made.

    Args:
        prompt: What stands in its field at first.
    """

    def __init__(self, prompt: str):
        self.tab = gr.State("")
        self.named = gr.Textbox(visible=False)
        self.shown, self.selected = gr.State(-1), gr.State(None)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self._lay_out_settings(prompt)
            with gr.Column(scale=3, min_width=320):
                self._lay_out_pictures()
        with gr.Tab("Map"):
            gr.Markdown(
                "All pictures so far; alike ones lie close together, the last batch in orange. "
                "Click on an empty place: the next batch is drawn towards it."
            )
            self.map = gr.Image(
                elem_id="map",
                label="Map of all pictures",
                interactive=False,
                format="png",
                buttons=[],
            )
        with gr.Tab("History"):
            self.history = gr.Gallery(
                elem_id="history",
                label="Batches so far: click to see one again",
                columns=8,
                allow_preview=False,
            )
        with gr.Tab("Reproduce"):
            self.command = gr.Code(label="As a command line", language="shell", wrap_lines=True)
            self.program = gr.Code(label="As Python", language="python")

    def _lay_out_settings(self, prompt: str) -> None:
        self.prompt = gr.Textbox(prompt, label="Prompt", lines=2, max_length=2000)
        self.num_particles = gr.Slider(1, MOST_DRAWN, 16, step=1, label="How many pictures")
        self.strength = gr.Slider(
            0.0, 2.0, 1.0, step=0.05, label="How different", info="0: as they come. 1: as measured."
        )
        self.differ = gr.Radio(list(DIFFERS), value="everything", label="What should differ")
        self.compare = gr.Checkbox(True, label="Compare with independent pictures")
        with gr.Row():
            # Until the page knows its name
            self.draw = gr.Button("Draw", variant="primary", min_width=120, interactive=False)
            self.stop = gr.Button("Stop", variant="stop", min_width=80)
        with gr.Accordion("Advanced", open=False):
            self.seed = gr.Textbox("", label="Seed (empty: a new one each time)", max_length=20)
            self.steps = gr.Slider(1, 100, DEFAULT_STEPS, step=1, label="Steps")
            self.guidance_scale = gr.Slider(
                1.0, 15.0, DEFAULT_GUIDANCE_SCALE, step=0.5, label="Guidance scale"
            )
            self.negative_prompt = gr.Textbox("", label="Negative prompt", max_length=2000)
            self.scheduler = gr.Dropdown(list(SCHEDULERS), value="euler", label="Scheduler")
        self.piles: dict[Pile, tuple[gr.Markdown, gr.Gallery]] = {}
        for pile, title in PILES.items():
            heading = gr.Markdown(f"**{title}**", visible=False)
            gallery = gr.Gallery(
                elem_id=pile,
                label=title,
                show_label=False,
                columns=5,
                fit_columns=False,
                height=110,
                allow_preview=False,
                buttons=[],
                visible=False,
            )
            self.piles[pile] = heading, gallery
        self.forget = gr.Button("Forget these pictures", size="sm", visible=False)
        with gr.Accordion("Pictures from the disk", open=False):
            self.files = gr.File(
                elem_id="files",
                label="Drop pictures here",
                file_count="multiple",
                file_types=["image"],
            )
            with gr.Row():
                self.take = {
                    pile: gr.Button(f"{title.split()[0]} these files", size="sm", min_width=120)
                    for pile, title in PILES.items()
                }

    def _lay_out_pictures(self) -> None:
        self.progress = gr.HTML("", label="Progress")
        self.headings: dict[Kind, gr.Markdown] = {}
        self.previews: dict[Kind, gr.HTML] = {}
        self.galleries: dict[Kind, gr.Gallery] = {}
        with gr.Row():
            for kind in TITLES:
                with gr.Column(min_width=280):
                    self.headings[kind] = gr.Markdown(f"### {TITLES[kind]}")
                    self.previews[kind] = gr.HTML("", elem_classes="preview", visible=False)
                    self.galleries[kind] = gr.Gallery(
                        elem_id=kind,
                        label=f"{TITLES[kind]}: click on a picture to choose it",
                        show_label=False,
                        columns=4,
                        height="auto",
                        object_fit="contain",
                        format="png",
                        allow_preview=False,
                        buttons=[],
                    )
        self.chosen = gr.Markdown(CHOOSE)
        with gr.Row():
            self.choose = {
                pile: gr.Button(f"More {pile} it", size="sm", min_width=120) for pile in PILES
            }

    def settings(self) -> list[gr.Component]:
        """Returns what a batch is asked for in, in the order of `Page._draw`."""
        first = [self.prompt, self.num_particles, self.differ, self.strength, self.seed]
        advanced = [self.steps, self.guidance_scale, self.negative_prompt, self.scheduler]
        return [*first, *advanced, self.compare]

    def shows(self) -> list[gr.Component]:
        """Returns what shows a session, all of it or in part."""
        kinds = [*self.headings.values(), *self.previews.values(), *self.galleries.values()]
        piles = [*chain(*self.piles.values()), self.forget]
        sheets = [self.map, self.history, self.command, self.program]
        state = [self.shown, self.selected, self.chosen, self.tab]
        return [self.progress, *kinds, *piles, *sheets, *state]
