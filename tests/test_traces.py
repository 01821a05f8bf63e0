import datasets
import numpy as np
import pytest
import synthetic_traces
from synthetic_traces import MODEL, write_trace_set

from foresight.config import UserError
from foresight.traces import ROLLOUT_SCHEMA, TRACE_SCHEMA, TraceSet


def assert_same_rows(table, rows: list[dict]) -> None:
    assert len(table) == len(rows)
    for found, expected in zip(table, rows, strict=True):
        assert set(found) == set(expected)
        for key, value in expected.items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(np.asarray(found[key], np.float64), value), key
            else:
                assert found[key] == value, key


def test_datasets_opens_the_traces_and_only_those(profiled, tmp_path):
    opened = datasets.load_dataset("parquet", data_dir=str(profiled), cache_dir=str(tmp_path))
    assert list(opened) == ["train"]
    assert opened["train"].column_names == TRACE_SCHEMA.names
    assert_same_rows(opened["train"], TraceSet.open(profiled).traces)


def test_the_card_names_traces_and_roll_outs(profiled, tmp_path):
    found = TraceSet.open(profiled)
    for arguments, rows, schema in (
        ([], found.traces, TRACE_SCHEMA),
        (["rollouts"], found.rollouts, ROLLOUT_SCHEMA),
    ):
        opened = datasets.load_dataset(str(profiled), *arguments, cache_dir=str(tmp_path))
        assert opened["train"].column_names == schema.names
        assert_same_rows(opened["train"], rows)
    card = (profiled / "README.md").read_text("utf-8")
    assert "3 generations of 3 prompts in 1 configuration(s)" in card
    assert found.settings["model"]["weights_hash"] in card


def test_what_is_written_is_read(tmp_path):
    folder = write_trace_set(tmp_path / "set", prompts=2, seeds=2)
    found = TraceSet.open(folder)
    expected = synthetic_traces.trace(1, "prompt 1", np.random.default_rng(1))
    for key, value in expected.items():
        number = isinstance(value, float | np.ndarray)
        assert found.traces[1][key] == (pytest.approx(value, rel=1e-6) if number else value), key
    assert len(found.rollouts) == 8
    assert found.settings["model"] == MODEL
    assert [found.has(number) for number in range(4)] == [True] * 4
    names = sorted(path.name for path in (folder / "data").iterdir())
    assert names == [f"train-{number:05d}-of-00004.parquet" for number in range(4)]


def test_a_set_continues_under_the_same_settings_only(tmp_path):
    folder = write_trace_set(tmp_path / "set")
    settings = TraceSet.open(folder).settings
    assert TraceSet.create(folder, settings).settings == settings
    with pytest.raises(UserError, match=r"\(sketch_width differ\); give --output another folder"):
        TraceSet.create(folder, {**settings, "sketch_width": 17})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep", "utf-8")
    with pytest.raises(UserError, match="is not empty and no trace set"):
        TraceSet.create(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_and_empty_sets_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing is no trace set; make one with"):
        TraceSet.open(tmp_path / "missing")
    with pytest.raises(UserError, match="is no trace set"):
        TraceSet.open(tmp_path)
    folder = write_trace_set(tmp_path / "none", prompts=1)
    for path in (folder / "data").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no generation"):
        TraceSet.open(folder)


@pytest.mark.parametrize("part", ["data", "rollouts"])
@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_truncated_files_are_refused_by_name(tmp_path, part, keep):
    folder = write_trace_set(tmp_path / "set")
    file = sorted((folder / part).iterdir())[2]
    file.write_bytes(file.read_bytes()[:keep])
    found = TraceSet.open(folder)
    with pytest.raises(UserError, match=rf"{file.name} is damaged .* profile again"):
        _ = found.traces if part == "data" else found.rollouts


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", ["gram", "block_seconds", "overhead_seconds"])
def test_numbers_that_are_none_are_refused_by_column(tmp_path, column, value):
    folder = write_trace_set(tmp_path / "set", prompts=2)
    found = TraceSet.open(folder)
    row = synthetic_traces.trace(1, "prompt 1", np.random.default_rng(1))
    row[column] = np.where(np.asarray(row[column]) > -np.inf, value, row[column])
    row[column] = row[column] if row[column].ndim else float(row[column])
    found.add(1, row, [])
    with pytest.raises(UserError, match=f"train-00001.*`{column}` holds NaN or infinity"):
        _ = found.traces


def test_damaged_settings_are_refused(tmp_path):
    folder = write_trace_set(tmp_path / "set")
    path = folder / "trace_set.json"
    path.write_text(path.read_text("utf-8")[:40], "utf-8")
    with pytest.raises(UserError, match="damaged"):
        TraceSet.open(folder)
