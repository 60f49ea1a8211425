"""A truncated or changed file raises an error; it never crashes or returns wrong values."""

import pytest
import torch

from fastrepulse import Bank
from fastrepulse.safetensors_record import load_record, save_record

TENSORS = {
    "rows": torch.arange(6.0).view(2, 3),
    "half": torch.tensor([1.5, -2.0]).bfloat16(),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(3),
}
RECORD = {"kind": {"embedding": "thirds"}, "sigmas": {"0": 14.6}, "seed": None}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "deep" / "file.safetensors"
    save_record(path, TENSORS, RECORD)
    return path


def test_tensors_and_record_are_restored(file):
    tensors, record = load_record(file)
    assert record == RECORD and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_truncated_at_any_byte_is_refused(file):
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be used"):
            load_record(file)


def test_a_flipped_bit_is_detected_or_changes_nothing(file):
    whole = file.read_bytes()
    expected = load_record(file)
    refused = 0
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            tensors, record = load_record(file)
        except ValueError:
            refused += 1
            continue
        # For example a flipped bit in white space
        assert record == expected[1]
        assert all(torch.equal(tensors[name], rows) for name, rows in expected[0].items())
    assert refused > 0.95 * 8 * len(whole)


def test_a_failed_write_leaves_the_old_file(file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr("fastrepulse.safetensors_record.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_record(file, {"rows": torch.zeros(3)}, {})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("record", [{}, [], {"bank": 1}, {"bank": None}])
def test_a_file_with_another_record_is_no_bank(record, tmp_path):
    save_record(tmp_path / "bank", {}, record)
    with pytest.raises(ValueError, match="is not one of this version"):
        Bank.load(tmp_path / "bank")
