"""Files appear whole or not at all, readable as the umask says, on any file system."""

import errno
import json
import os
import resource
import stat

import pytest
import torch
from PIL import Image

import fastrepulse
from fastrepulse import Bank, demo, files
from fastrepulse.sampling.output import CHECKPOINTS, check_space, save_summary
from helpers.faults import failing


def draw(**arguments):
    few = {"num_inference_steps": 1, "height": 32, "width": 32, "seed": 0, "progress": False}
    return fastrepulse.sample("a planet", **{"num_particles": 2, **few, **arguments})


@pytest.fixture(scope="module")
def result():
    return draw()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_every_file_has_the_mode_of_the_umask(umask, mode, result, tmp_path):
    before = os.umask(umask)
    try:
        Bank().save(tmp_path / "bank")
        result.save(tmp_path)
        draw(out=tmp_path / "out")
        files.write_text(tmp_path / "table.md", "")
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {mode}


@pytest.fixture
def small_files():
    """Gives a function that limits the size of files, as a full disk does."""
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


WRITERS = {
    "grid.png": lambda folder, result: save_summary(folder, [NOISE], {}, []),
    "sample.json": lambda folder, result: save_summary(folder, [NOISE], {"a": "b" * 9000}, []),
    "table.md": lambda folder, result: files.write_text(folder / "table.md", "a" * 9000),
    "bank": lambda folder, result: Bank(torch.zeros(1, 4, 32, 32)).save(folder / "bank"),
}
NOISE = Image.effect_noise((256, 256), 200)


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_full_disk_the_old_file_stays_and_the_error_names_it(
    name, result, tmp_path, small_files
):
    path = tmp_path / name
    path.write_text("earlier")
    small_files(8000)
    with pytest.raises(OSError, match=name):
        WRITERS[name](tmp_path, result)
    assert path.read_text() == "earlier"
    assert not list(tmp_path.glob("*.partial"))


def test_a_name_of_the_longest_length_is_written(tmp_path):
    path = tmp_path / (127 * "é" + "b")
    files.write_text(path, "")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_synchronise_is_named_once(number, tmp_path, monkeypatch, caplog):
    files._warn_of.cache_clear()
    real, checkpoints = os.fsync, []

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "out"
    draw(
        out=out,
        num_inference_steps=5,
        checkpoint_every=0,
        callback_on_step_end=lambda end: checkpoints.append(len(list(out.glob(CHECKPOINTS)))),
    )
    Bank().save(tmp_path / "bank")
    assert checkpoints[:3] == [1, 2, 2]
    assert len(Bank.load(tmp_path / "bank")) == 0
    assert [record.message for record in caplog.records] == [
        f"this file system cannot confirm that files are on the disk: {os.strerror(number)}"
    ]


def test_an_error_of_the_disk_itself_is_not_taken_for_a_missing_ability(tmp_path, monkeypatch):
    with (
        failing(monkeypatch, os, "fsync", OSError(errno.EIO, "Input/output error")),
        pytest.raises(OSError, match=r"Input/output error: .*bank"),
    ):
        Bank().save(tmp_path / "bank")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_tells_no_size_is_written(tmp_path, monkeypatch):
    sizes = [*os.statvfs(tmp_path)]
    sizes[2:5] = 0, 0, 0
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(sizes))
    check_space(tmp_path, 10**6)


def pngs(folder):
    return sorted(path.name for path in folder.rglob("0*.png"))


def test_a_folder_holds_one_run(result, tmp_path):
    other = draw(num_particles=1)
    result.save(tmp_path)
    with pytest.raises(FileExistsError, match=r"folder must be .* without images of another run"):
        other.save(tmp_path)
    assert len(pngs(tmp_path)) == 2
    (tmp_path / "notes.txt").touch()
    other.save(tmp_path, overwrite=True)
    assert pngs(tmp_path) == ["00000.png"] and (tmp_path / "notes.txt").exists()
    record = json.loads((tmp_path / "sample.json").read_text())
    assert record["settings"]["num_particles"] == 1


def test_a_stopped_run_is_replaced_only_when_asked(result, tmp_path):
    def stop(end):
        if end.taken == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(out=tmp_path, num_inference_steps=3, checkpoint_every=0, callback_on_step_end=stop)
    with pytest.raises(FileExistsError, match="fastrepulse resume"):
        result.save(tmp_path)
    assert not pngs(tmp_path)
    result.save(tmp_path, overwrite=True)
    assert len(pngs(tmp_path)) == 2 and not list(tmp_path.glob(CHECKPOINTS))


def test_a_run_that_was_written_as_it_was_drawn_is_saved_already(tmp_path):
    drawn = draw(out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    drawn.save(tmp_path, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_second_demo_replaces_the_first(result, tmp_path):
    for drawn in (result, draw(num_particles=1)):
        demo.save(demo.Comparison(drawn, drawn, (), NOISE), tmp_path)
    assert pngs(tmp_path) == ["00000.png", "00000.png"]
    (tmp_path / "independent-vs-repelled.png").unlink()
    with pytest.raises(FileExistsError):
        demo.save(demo.Comparison(result, result, (), NOISE), tmp_path)
