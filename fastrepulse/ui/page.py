"""The event handlers of the page."""

import base64
import html
import io
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import gradio as gr
from PIL import Image

from fastrepulse.models import Model
from fastrepulse.models.shipped import recommended
from fastrepulse.sampling.output import image_grid
from fastrepulse.ui.batch import Batch
from fastrepulse.ui.layout import CHOOSE, PILES, TITLES, Layout
from fastrepulse.ui.session import Kind, Pile, Session

MAX_SESSIONS = 32

# A tab keeps its name across reloads; every tab has its own name
NAME_OF_TAB = """() => {
    const digits = () => Math.floor(Math.random() * 2 ** 48).toString(16).padStart(12, "0");
    const name = sessionStorage.getItem("fastrepulse") || digits();
    sessionStorage.setItem("fastrepulse", name);
    return name;
}"""

Updates: TypeAlias = dict[Any, Any]
"""New values of components."""


class Page:
    """The page and one session for each open tab; for its arguments see `launch`."""

    def __init__(self, model: Model, model_name: str | None, folder: Path, prompt: str):
        self.model, self.model_name, self.folder = model, model_name, folder
        self._sessions: dict[str, Session] = {}
        self._worker = ThreadPoolExecutor(max_workers=1)
        with gr.Blocks(title="fastrepulse", analytics_enabled=False) as self.blocks:
            self.on = Layout(prompt, recommended(model))
            self._connect()

    def session(self, tab: str) -> Session:
        """Returns the session of a tab, creating it on the first call."""
        if not re.fullmatch("[0-9a-f]{12}", tab):
            raise gr.Error("the page has lost its session: reload the page")
        if tab not in self._sessions:
            idle = [name for name, session in self._sessions.items() if not session.runs]
            if len(self._sessions) >= MAX_SESSIONS and idle:
                del self._sessions[idle[0]]
            self._sessions[tab] = Session(self.model, self.folder, self._worker)
        return self._sessions[tab]

    def _connect(self) -> None:
        on = self.on
        # Handlers run at once; only the runs wait for each other
        options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        options["concurrency_limit"] = None
        outputs, inputs = on.outputs(), [on.tab, *on.settings()]
        self.blocks.load(self._open, on.named, [*outputs, on.draw], js=NAME_OF_TAB, **options)
        gr.on([on.draw.click, on.prompt.submit], self._draw, inputs, outputs, **options)
        on.stop.click(lambda tab: self.session(tab).stop(), on.tab, **options)
        for kind, gallery in on.galleries.items():
            gallery.select(_chosen(kind), on.shown, [on.selected, on.chosen], **options)
        for pile in PILES:
            pick, pick_files = partial(self._pick, pile), partial(self._pick_files, pile)
            on.choose[pile].click(pick, [on.tab, on.selected], outputs, **options)
            on.take[pile].click(pick_files, [on.tab, on.files], [*outputs, on.files], **options)
        on.forget.click(self._forget, on.tab, outputs, **options)
        on.history.select(self._show_again, on.tab, outputs, **options)
        on.map.select(self._pick_on_map, on.tab, outputs, **options)

    def _open(self, name: str) -> Iterator[Updates]:
        session = self.session(name)
        opened: Updates = {self.on.tab: name, self.on.draw: gr.update(interactive=True)}
        yield opened | self._show_piles(session)
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
                raise ValueError("prompt must not be empty")
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
        """Yields updates of the page until the session's run ends."""
        changes = -1
        while session.runs:
            if session.view.changes != changes:
                changes = session.view.changes
                yield self._show_run(session)
            # A browser without a GPU takes a tenth of a second to render an update
            session.wait(0.5)
        yield self._show_batch(session, len(session.drawn) - 1) | self._show_all(session)

    def _show_run(self, session: Session) -> Updates:
        view = session.view
        text = "Waiting for the batch of another tab"
        if view.began is not None:
            left = (time.monotonic() - view.began) * (1 / view.share - 1) if view.share else None
            text = f"Drawing: {view.share:.0%}" + ("" if left is None else f", {left:.0f} s left")
        updates: Updates = {self.on.progress: _bar(text, view.share)}
        for kind in TITLES:
            images = view.images.get(kind, [])
            updates[self.on.galleries[kind]] = gr.update(visible=False)
            updates[self.on.headings[kind]] = f"### {TITLES[kind]}" if images else ""
            updates[self.on.previews[kind]] = gr.update(value=_sheet(images), visible=True)
        return updates

    def _show_batch(self, session: Session, index: int) -> Updates:
        """Returns the updates that show one batch of a session."""
        updates = self._show_piles(session) | {self.on.progress: ""}
        updates |= {self.on.selected: None, self.on.chosen: CHOOSE}
        if session.error is not None:
            updates[self.on.progress] = _bar(f"Failed: {session.error}", 0, "alert")
        for preview in self.on.previews.values():
            updates[preview] = gr.update(value="", visible=False)
        for gallery in self.on.galleries.values():
            updates[gallery] = gr.update(value=None, visible=True)
        if not session.drawn:
            return updates
        drawn = session.drawn[index]
        if drawn.stopped and session.error is None:
            updates[self.on.progress] = _bar(
                "Stopped: these are the predicted images at that step", 0
            )
        for kind, images in drawn.images.items():
            captioned = [
                (image, f"{drawn.batch.prompt}, {i + 1}") for i, image in enumerate(images)
            ]
            updates[self.on.galleries[kind]] = gr.update(value=captioned, visible=True)
            updates[self.on.headings[kind]] = f"### {TITLES[kind]}\n{drawn.measured[kind]}"
        for kind in TITLES.keys() - drawn.images.keys():
            updates[self.on.headings[kind]] = ""
            updates[self.on.galleries[kind]] = gr.update(value=None, visible=False)
        return updates | {
            self.on.shown: index,
            self.on.command: drawn.batch.as_command(self.model_name),
            self.on.program: drawn.batch.as_python(self.model_name),
        }

    def _show_all(self, session: Session) -> Updates:
        """Returns the updates that show all batches of a session."""
        pca_map = session.map()
        if pca_map is None:
            return {}
        return {
            self.on.map: pca_map.sheet(len(session.drawn[-1].images["repelled"])),
            self.on.history: [
                (
                    image_grid(drawn.images["repelled"]),
                    f"{i}: {drawn.batch.prompt}, {drawn.batch.differ} {drawn.batch.strength:g}",
                )
                for i, drawn in enumerate(session.drawn, 1)
            ],
        }

    def _show_piles(self, session: Session) -> Updates:
        """Returns the updates that show the images to be like and unlike."""
        updates: Updates = {self.on.forget: gr.update(visible=any(session.picked.values()))}
        for pile, images in session.picked.items():
            heading, gallery = self.on.piles[pile]
            updates[heading] = gr.update(visible=bool(images))
            updates[gallery] = gr.update(value=list(images), visible=bool(images))
        return updates

    def _pick(self, pile: Pile, tab: str, selected: tuple[int, Kind, int] | None) -> Updates:
        if selected is None:
            raise gr.Error("click an image first")
        session = self.session(tab)
        batch, kind, i = selected
        _or_show_error(lambda: session.pick(pile, session.drawn[batch].images[kind][i]))
        return self._show_piles(session)

    def _pick_files(self, pile: Pile, tab: str, files: Sequence[str] | None) -> Updates:
        session = self.session(tab)
        for file in files or []:
            try:
                session.pick_file(pile, Path(file))
            except ValueError as error:
                gr.Warning(str(error))
        return self._show_piles(session) | {self.on.files: None}

    def _forget(self, tab: str) -> Updates:
        session = self.session(tab)
        for images in session.picked.values():
            images.clear()
        return self._show_piles(session)

    def _show_again(self, tab: str, event: gr.SelectData) -> Updates:
        return self._show_batch(self.session(tab), event.index)

    def _pick_on_map(self, tab: str, event: gr.SelectData) -> Updates:
        session = self.session(tab)
        if (pca_map := session.map()) is not None:
            _or_show_error(lambda: session.pick("like", pca_map.nearest(*event.index)))
        return self._show_piles(session)


def _chosen(kind: Kind) -> Any:
    def chosen(shown: int, event: gr.SelectData) -> tuple[tuple[int, Kind, int], str]:
        return (shown, kind, event.index), f"Chosen: image {event.index + 1}, {TITLES[kind]}."

    return chosen


def _or_show_error(action: Any) -> None:
    """Runs an action and shows a ValueError on the page."""
    try:
        action()
    except ValueError as error:
        raise gr.Error(str(error)) from None


def _bar(text: str, share: float, role: str = "status") -> str:
    """Returns a progress bar below a line that a screen reader announces."""
    width = f'<div class="bar"><div style="width:{share:.0%}"></div></div>' if share else ""
    return f'<p role="{role}">{html.escape(text)}</p>{width}'


def _sheet(images: Sequence[Image.Image]) -> str:
    """Returns images as one inline image, which loads faster than many files."""
    if not images:
        return ""
    written = io.BytesIO()
    image_grid(images, columns=4).save(written, "JPEG", quality=85)
    data = base64.b64encode(written.getvalue()).decode()
    return f'<img alt="Preview of the batch" src="data:image/jpeg;base64,{data}">'
