import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from latte_by_hand import NUM_BLOCKS, PROFILED_CONFIG, PROMPT
from synthetic_traces import write_trace_set

from foresight.cli import main, split_policies, spread
from foresight.fingerprint import fingerprint
from foresight.models.architecture import TEXT_WIDTH
from foresight.pipeline import load_pipeline
from foresight.policies.learned import LearnedPolicy
from foresight.policies.network import ReuseModel
from foresight.solver import euler_solver

COSTS = {"block_seconds": [0.002] * NUM_BLOCKS, "overhead_seconds": 0.001, "skip_seconds": 0.0004}
SMALL = ["--height", "32", "--width", "32", "--num-inference-steps", "5"]


def save_policy(folder: Path, model: dict) -> Path:
    network = ReuseModel(NUM_BLOCKS, TEXT_WIDTH, num_levels=8, profiled_steps=[8])
    grid = np.linspace(1, 0, 8)
    network.paths[0].fit(grid, np.eye(8), euler_solver(grid), guidance_scale=4.0)
    LearnedPolicy(network, model, COSTS).save_pretrained(folder)
    return folder


@pytest.fixture
def work(tmp_path, model_folder, other_pipe):
    """A folder with inputs, good and bad; commands run in it."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\na blue square spins\n", "utf-8")
    (tmp_path / "blank.txt").write_text("\n  \n\t\n", "utf-8")
    (tmp_path / "headings.txt").write_text("# slow\n\n# fast\n", "utf-8")
    configs = [dataclasses.asdict(PROFILED_CONFIG)]
    (tmp_path / "configs.json").write_text(json.dumps(configs), "utf-8")
    (tmp_path / "zero.json").write_text(json.dumps([{**configs[0], "height": 0}]), "utf-8")
    (tmp_path / "cut.json").write_text('[{"height": 32', "utf-8")
    save_policy(tmp_path / "policy", fingerprint(load_pipeline(model_folder, device="cpu")))
    save_policy(tmp_path / "foreign", fingerprint(other_pipe))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("keep", "utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


def files_below(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refusal(arguments: list, capsys: pytest.CaptureFixture, folder: Path) -> str:
    """The one line that bad input ends in; nothing may have been written."""
    before, folders = files_below(folder), set(folder.rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("foresight: ")
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.endswith("\n")
    assert not shown.out
    assert files_below(folder) == before
    assert set(folder.rglob("*")) == folders
    return shown.err


GENERATE = {
    "unknown policy": (["--policy", "magic"], "unknown policy 'magic'; choose from none"),
    "bad option": (["--policy", "static[interval=0]"], "`interval` must be at least 1"),
    "slow-down": (["--policy", "{}/policy", "--speedup", "0.5"], "--speedup 0.5 is out of range"),
    "too fast": (["--policy", "{}/policy", "--speedup", "99"], "--speedup 99 is out of range"),
    "out of reach": (["--policy", "{}/policy", "--speedup", "19"], "--speedup 19 cannot be"),
    "no number": (["--policy", "{}/policy", "--speedup", "nan"], "--speedup nan is out of range"),
    "not a number": (["--speedup", "fast"], "argument --speedup"),
    "no knob": (["--policy", "static", "--speedup", "2"], "policy static takes no speed-up"),
    "another model": (["--policy", "{}/foreign"], "trained for other weights of this model"),
    "no policy": (["--policy", "{}/thesis"], "no trained policy"),
    "too few bytes": (
        ["--policy", "{}/policy", "--max-cache-bytes", "7"],
        "max_cache_bytes=7 is too little: a prediction of this size takes 32768",
    ),
    "no bytes": (["--max-cache-bytes", "0"], "--max-cache-bytes"),
    "no bound": (
        ["--policy", "static", "--max-cache-bytes", "7"],
        "policy static cannot be held to 7 cached bytes",
    ),
    "no video": (["--output", "{}/video.gif"], "must end in .mp4"),
    "no steps": (["--num-inference-steps", "0"], "--num-inference-steps"),
    "unknown flag": (["--magic", "3"], "--magic"),
}


@pytest.mark.parametrize("case", GENERATE)
def test_generate_refuses(case, work, model_folder, capsys):
    flags, message = GENERATE[case]
    arguments = ["generate", "--model", model_folder, "--device", "cpu", "--prompt", PROMPT]
    arguments += ["--output", work / "out" / "video.mp4", *SMALL]
    arguments += [flag.format(work) for flag in flags]
    assert message in refusal(arguments, capsys, work)


INPUTS = {
    "blank prompts": (["--prompts", "{}/blank.txt"], "blank.txt holds no prompt"),
    "headings only": (["--prompts", "{}/headings.txt"], "headings.txt holds no prompt"),
    "no prompts": (["--prompts", "{}/none.txt"], "none.txt"),
    "no configs": (["--configs", "{}/none.json"], "none.json"),
    "no JSON": (["--configs", "{}/cut.json"], "cut.json is not JSON"),
    "zero height": (["--configs", "{}/zero.json"], "`height` must be a whole number above 0"),
    "prompts for configs": (["--configs", "{}/prompts.txt"], "prompts.txt is not JSON"),
    "no model": (["--model", "{}/thesis"], "thesis is not a diffusers pipeline"),
    "limit": (["--limit", "0"], "--limit: must be a whole number of at least 1"),
}


@pytest.mark.parametrize("command", ["profile", "compare"])
@pytest.mark.parametrize("case", INPUTS)
def test_profile_and_compare_refuse(command, case, work, model_folder, capsys):
    flags, message = INPUTS[case]
    arguments = [command, "--model", model_folder, "--device", "cpu", "--output", work / "out"]
    arguments += ["--prompts", work / "prompts.txt", "--configs", work / "configs.json"]
    arguments += ["--policies", "static"] if command == "compare" else []
    arguments += [flag.format(work) for flag in flags]
    assert message in refusal(arguments, capsys, work)


def test_profile_refuses_a_folder_of_something_else(work, model_folder, capsys):
    arguments = ["profile", "--model", model_folder, "--device", "cpu", "--output", work / "thesis"]
    arguments += ["--prompts", work / "prompts.txt", "--configs", work / "configs.json"]
    assert "thesis is not empty and no trace set" in refusal(arguments, capsys, work)


def test_compare_refuses_a_folder_of_something_else(work, model_folder, capsys):
    arguments = ["compare", "--model", model_folder, "--device", "cpu", "--output", work / "thesis"]
    arguments += ["--prompts", work / "prompts.txt", "--configs", work / "configs.json"]
    arguments += ["--policies", "static[interval=2]"]
    assert "thesis is not empty and no comparison" in refusal(arguments, capsys, work)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ("static,magic", "unknown policy 'magic'"),
        ("static,{}/foreign", "trained for other weights of this model"),
        ("{}/policy[fine_tuned=yes]", "has no other option than [fine_tuned=true]"),
        ("static,{}/policy[fine_tuned=true", "the options lack their closing ]"),
        ("foresight[threshold=0.5,gap=2]", "no option 'gap'"),
    ],
)
def test_compare_refuses_policies(policies, message, work, model_folder, capsys):
    arguments = ["compare", "--model", model_folder, "--device", "cpu", "--output", work / "out"]
    arguments += ["--prompts", work / "prompts.txt", "--configs", work / "configs.json"]
    arguments += ["--policies", policies.format(work)]
    assert message in refusal(arguments, capsys, work)


def test_inspect_refuses_trace_sets_that_are_none(work, capsys):
    for name in ("missing", "empty", "thesis"):
        assert name in refusal(["inspect", work / name], capsys, work)
    no_generation = write_trace_set(work / "no-generation", prompts=1)
    for path in (no_generation / "data").iterdir():
        path.unlink()
    assert "holds no generation" in refusal(["inspect", no_generation], capsys, work)
    truncated = write_trace_set(work / "truncated", prompts=3)
    file = min((truncated / "data").iterdir())
    file.write_bytes(file.read_bytes()[:300])
    assert f"{file.name} is damaged" in refusal(["inspect", truncated], capsys, work)


def test_inspect_refuses_nan(work, capsys):
    folder = write_trace_set(work / "nan", prompts=2, gram=np.full((3, 10, 10), np.nan))
    assert "`gram` holds NaN" in refusal(["inspect", folder], capsys, work)


def test_commands_need_their_arguments(work, capsys):
    assert "--model" in refusal(["profile"], capsys, work)
    assert "COMMAND" in refusal([], capsys, work)
    assert "invalid choice: 'magic'" in refusal(["magic"], capsys, work)


def test_generate_writes_the_video(work, model_folder, capsys):
    output = work / "new" / "video.mp4"
    arguments = ["generate", "--model", str(model_folder), "--device", "cpu", "--prompt", PROMPT]
    arguments += ["--policy", str(work / "policy"), "--speedup", "1.5"]
    arguments += ["--max-cache-bytes", "40000"]
    main([*arguments, *SMALL, "--output", str(output)])
    assert imageio_ffmpeg.count_frames_and_secs(str(output)) == (16, 2.0)
    assert [path.name for path in output.parent.iterdir()] == ["video.mp4"]
    shown = capsys.readouterr().out
    assert "block calls computed over 5 steps" in shown
    assert str(output) in shown


def test_the_line_is_all_that_a_shell_shows(work, model_folder):
    arguments = ["generate", "--model", model_folder, "--prompt", PROMPT, *SMALL]
    arguments += ["--policy", work / "foreign", "--output", work / "video.mp4"]
    code = "from foresight.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 2
    assert shown.stderr.startswith("foresight: policy foreign was trained for other weights")
    assert shown.stderr.count("\n") == 1
    assert not shown.stdout
    assert not (work / "video.mp4").exists()


def test_help_is_quick_and_imports_no_torch():
    code = (
        "import sys\n"
        "from foresight.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'diffusers', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments, expected in (([], "inspect"), (["profile"], "--sketch-width")):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shown.returncode == 0, shown.stderr
        assert expected in shown.stdout
        # Processor time: it does not depend on what else this machine does.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_policies_are_split_outside_brackets():
    assert split_policies("foresight[threshold=0.5,cache=output], static ,runs/a") == [
        "foresight[threshold=0.5,cache=output]",
        "static",
        "runs/a",
    ]
    assert split_policies("none") == ["none"]
    assert split_policies(",") == []


def test_limit_takes_evenly_from_the_whole_list():
    items = list(range(12))
    assert spread(items, None) == items
    assert spread(items, 40) == items
    for limit in range(1, 13):
        taken = spread(items, limit)
        assert len(taken) == len(set(taken)) == limit
        assert taken == sorted(taken)
    assert spread(items, 3) == [2, 6, 10]


def test_the_package_s_surface_loads_at_first_use():
    import foresight
    from foresight import session

    assert foresight.reuse is session.reuse
    assert set(foresight.__all__) == {"disable", "enable", "load_policy", "reuse"}
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = foresight.magic
