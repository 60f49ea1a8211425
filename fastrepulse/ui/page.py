"""The page: where things stand, and what is called when a person does something."""

import base64
import html
import io
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image

from fastrepulse.models import SCHEDULERS, Model
from fastrepulse.sampling.output import image_grid
from fastrepulse.sampling.sample import DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS
from fastrepulse.ui.batch import DIFFERS, Batch
from fastrepulse.ui.session import Drawn, Kind, Pile, Session

MOST_DRAWN = 64
"""Pictures of a batch."""
MOST_SESSIONS = 32
UPLOAD = "20mb"
"""The largest file that is taken."""
TITLES: dict[Kind, str] = {"repelled": "Different", "independent": "Independent, the same noise"}
CHOOSE = "Click on a picture to choose it."
PILES: dict[Pile, str] = {"unlike": "Unlike these", "like": "Like these"}

# A tab keeps its name over a reload, and another tab has another one
NAME_OF_TAB = """() => {
    const digits = () => Math.floor(Math.random() * 2 ** 48).toString(16).padStart(12, "0");
    const name = sessionStorage.getItem("fastrepulse") || digits();
    sessionStorage.setItem("fastrepulse", name);
    return name;
}"""
CSS = """
.preview img { width: 100%; border-radius: 6px; }
.bar { background: #8884; border-radius: 4px; height: 8px; }
.bar div { background: #d95f02; border-radius: 4px; height: 8px; }
.caption-label { display: none !important; }
"""

Updates: TypeAlias = dict[Any, Any]
"""New values of components."""


class Page:
    """The page and the sessions of all tabs that have it open.

    Args:
        model: What draws.
        model_name: Its folder, file or hub id; None for the shipped one.
        folder: Where pictures go.
        prompt: What stands in the field at first.
    """

    def __init__(self, model: Model, model_name: str | None, folder: Path, prompt: str):
        self.model, self.model_name, self.folder = model, model_name, folder
        self._sessions: dict[str, Session] = {}
        self._worker = ThreadPoolExecutor(max_workers=1)
        with gr.Blocks(title="fastrepulse", analytics_enabled=False) as self.blocks:
            self._lay_out(prompt)
            self._connect()

    def session(self, tab: str) -> Session:
        """Returns the session of a tab, a new one if need be."""
        if not re.fullmatch("[0-9a-f]{12}", tab):
            raise gr.Error("this page has lost its name: reload it")
        if tab not in self._sessions:
            idle = [name for name, session in self._sessions.items() if not session.runs]
            if len(self._sessions) >= MOST_SESSIONS and idle:
                del self._sessions[idle[0]]
            self._sessions[tab] = Session(self.model, self.model_name, self.folder, self._worker)
        return self._sessions[tab]

    def _lay_out(self, prompt: str) -> None:
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

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        many: dict[str, Any] = private | {"concurrency_limit": None}
        seen = [self.progress, *self.headings.values(), *self.previews.values()]
        seen += [*self.galleries.values(), self.map, self.history, self.command, self.program]
        seen += [
            *chain(*self.piles.values()),
            self.forget,
            self.shown,
            self.selected,
            self.chosen,
            self.tab,
        ]
        settings = [self.prompt, self.num_particles, self.differ, self.strength, self.seed]
        settings += [self.steps, self.guidance_scale, self.negative_prompt, self.scheduler]
        settings += [self.compare]
        self.blocks.load(self._open, self.named, [*seen, self.draw], js=NAME_OF_TAB, **many)
        gr.on(
            [self.draw.click, self.prompt.submit],
            self._draw,
            [self.tab, *settings],
            seen,
            **many,
        )
        self.stop.click(lambda tab: self.session(tab).stop(), self.tab, **many)
        for kind, gallery in self.galleries.items():
            gallery.select(_chosen(kind), self.shown, [self.selected, self.chosen], **many)
        for pile in PILES:
            self.choose[pile].click(self._pick(pile), [self.tab, self.selected], seen, **many)
            self.take[pile].click(
                self._pick_files(pile), [self.tab, self.files], [*seen, self.files], **many
            )
        self.forget.click(self._forget, self.tab, seen, **many)
        self.history.select(self._show_again, self.tab, seen, **many)
        self.map.select(self._aim, self.tab, seen, **many)

    def _open(self, name: str) -> Iterator[Updates]:
        session = self.session(name)
        yield {self.tab: name, self.draw: gr.update(interactive=True)} | self._picked(session)
        if session.runs or session.drawn:
            yield from self._watch(session)

    def _draw(self, tab: str, *values: Any) -> Iterator[Updates]:
        prompt, count, differ, strength, seed, steps, guidance, negative, scheduler, compare = (
            values
        )
        session = self.session(tab)
        try:
            if not re.fullmatch(r"\s*\d*\s*", seed):
                raise ValueError(f"seed must be a whole number or empty, got {seed!r}")
            if not prompt.strip():
                raise ValueError("prompt must say something")
            batch = Batch(
                prompt=prompt,
                num_particles=int(count),
                differ=differ,
                strength=float(strength),
                seed=int(seed) if seed.strip() else random.randrange(2**31),
                num_inference_steps=int(steps),
                guidance_scale=float(guidance),
                negative_prompt=negative,
                scheduler=scheduler,
                compare=compare,
            )
            session.start(batch)
        except (ValueError, RuntimeError) as error:
            raise gr.Error(str(error)) from None
        yield from self._watch(session)

    def _watch(self, session: Session) -> Iterator[Updates]:
        """Yields what there is to see until the run of a session is over."""
        changes = -1
        while session.runs:
            if session.view.changes != changes:
                changes = session.view.changes
                yield self._running(session)
            # A browser without a GPU of its own takes a tenth of a second to show it
            session.wait(0.5)
        yield self._drawn(session, len(session.drawn) - 1)

    def _running(self, session: Session) -> Updates:
        view = session.view
        said = "Waiting for another page's batch"
        if view.began is not None:
            left = (time.monotonic() - view.began) * (1 / view.share - 1) if view.share else None
            said = f"Drawing: {view.share:.0%}" + ("" if left is None else f", {left:.0f} s left")
        updates: Updates = {self.progress: _bar(said, view.share)}
        for kind in TITLES:
            images = view.images.get(kind, [])
            updates[self.galleries[kind]] = gr.update(visible=False)
            updates[self.headings[kind]] = f"### {TITLES[kind]}" if images else ""
            updates[self.previews[kind]] = gr.update(value=_sheet(images), visible=True)
        return updates

    def _drawn(self, session: Session, index: int) -> Updates:
        """Returns what shows one of the batches of a session, and what all of them have become."""
        updates = self._picked(session) | {self.progress: ""}
        updates |= {self.selected: None, self.chosen: CHOOSE}
        if session.error is not None:
            updates[self.progress] = _bar(f"Not drawn: {session.error}", 0, "alert")
        for preview in self.previews.values():
            updates[preview] = gr.update(value="", visible=False)
        for gallery in self.galleries.values():
            updates[gallery] = gr.update(value=None, visible=True)
        if not session.drawn:
            return updates
        drawn = session.drawn[index]
        if drawn.stopped and session.error is None:
            updates[self.progress] = _bar("Stopped: this is what the batch was heading for", 0)
        for kind, images in drawn.images.items():
            said = [(image, f"{drawn.batch.prompt}, {i + 1}") for i, image in enumerate(images)]
            updates[self.galleries[kind]] = gr.update(value=said, visible=True)
            updates[self.headings[kind]] = f"### {TITLES[kind]}\n{drawn.measured[kind]}"
        for kind in TITLES.keys() - drawn.images.keys():
            updates[self.headings[kind]] = ""
            updates[self.galleries[kind]] = gr.update(value=None, visible=False)
        pca_map = session.map()
        assert pca_map is not None
        return updates | {
            self.shown: index,
            self.map: pca_map.sheet(len(session.drawn[-1].images["repelled"])),
            self.history: [
                (image_grid(each.images["repelled"]), _caption(i, each))
                for i, each in enumerate(session.drawn)
            ],
            self.command: drawn.batch.as_command(self.model_name),
            self.program: drawn.batch.as_python(self.model_name),
        }

    def _picked(self, session: Session) -> Updates:
        """Returns what shows the pictures to be like and unlike."""
        updates: Updates = {self.forget: gr.update(visible=any(session.picked.values()))}
        for pile, images in session.picked.items():
            heading, gallery = self.piles[pile]
            updates[heading] = gr.update(visible=bool(images))
            updates[gallery] = gr.update(value=list(images), visible=bool(images))
        return updates

    def _pick(self, pile: Pile) -> Any:
        def pick(tab: str, selected: tuple[int, Kind, int] | None) -> Updates:
            if selected is None:
                raise gr.Error("click on a picture first")
            session = self.session(tab)
            batch, kind, i = selected
            _refusing(lambda: session.pick(pile, session.drawn[batch].images[kind][i]))
            return self._picked(session)

        return pick

    def _pick_files(self, pile: Pile) -> Any:
        def pick_files(tab: str, files: Sequence[str] | None) -> Updates:
            session = self.session(tab)
            for file in files or []:
                try:
                    session.pick_file(pile, Path(file))
                except ValueError as error:
                    gr.Warning(str(error))
            return self._picked(session) | {self.files: None}

        return pick_files

    def _forget(self, tab: str) -> Updates:
        session = self.session(tab)
        for images in session.picked.values():
            images.clear()
        return self._picked(session)

    def _show_again(self, tab: str, event: gr.SelectData) -> Updates:
        return self._drawn(self.session(tab), event.index)

    def _aim(self, tab: str, event: gr.SelectData) -> Updates:
        session = self.session(tab)
        pca_map = session.map()
        if pca_map is not None:
            x, y = event.index
            _refusing(lambda: session.pick("like", pca_map.blend(x, y)))
        return self._picked(session)


def _chosen(kind: Kind) -> Any:
    def chosen(shown: int, event: gr.SelectData) -> tuple[tuple[int, Kind, int], str]:
        return (shown, kind, event.index), f"Chosen: picture {event.index + 1}, {TITLES[kind]}."

    return chosen


def _refusing(action: Any) -> None:
    """Does something, and shows why where that is refused."""
    try:
        action()
    except ValueError as error:
        raise gr.Error(str(error)) from None


def _caption(number: int, drawn: Drawn) -> str:
    return f"{number + 1}: {drawn.batch.prompt}, {drawn.batch.differ} {drawn.batch.strength:g}"


def _bar(said: str, share: float, role: str = "status") -> str:
    """Returns a progress bar under a line that a screen reader reads out."""
    width = f'<div class="bar"><div style="width:{share:.0%}"></div></div>' if share else ""
    return f'<p role="{role}">{html.escape(said)}</p>{width}'


def _sheet(images: Sequence[Image.Image]) -> str:
    """Returns pictures in one element of the page, which is quicker than as many files."""
    if not images:
        return ""
    written = io.BytesIO()
    image_grid(images, columns=4).save(written, "JPEG", quality=85)
    data = base64.b64encode(written.getvalue()).decode()
    return f'<img alt="What the batch is heading for" src="data:image/jpeg;base64,{data}">'


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
