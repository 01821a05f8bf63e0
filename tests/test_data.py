import re
from pathlib import Path

import pytest

from data import make_prompts
from foresight.config import Prompt, load_configs, load_prompts
from foresight.models import clips

DATA = Path(make_prompts.__file__).parent
MINIMUM = {"train": 200, "validate": 40, "test": 64}
# What a split alone shows, so that a policy is measured on kinds of scene it has not met.
HELD_OUT = {
    "validate": ("grows", "orbits"),
    "test": ("bounces", "shrinks", "the camera shakes", "the camera zooms out", " and "),
}


def one_of(words) -> str:
    return "(" + "|".join(map(re.escape, words)) + ")"


ITEM = re.compile(
    rf"(an?) {one_of(clips.COLOURS)} {one_of(clips.SHAPES)} {one_of(clips.MOTIONS)}"
    rf"(?: {one_of(filter(None, clips.SPEEDS))})?"
)
SETTING = re.compile(
    rf" over {one_of(clips.BACKGROUNDS)}(?:, {one_of(filter(None, clips.CAMERAS))})?"
)


def parse(text: str) -> clips.Scene:
    setting = SETTING.search(text)
    assert setting, text
    assert setting.end() == len(text), text
    items = [ITEM.fullmatch(part) for part in text[: setting.start()].split(" and ")]
    assert all(items), text
    return clips.Scene(
        tuple(clips.Item(*(word or "" for word in item.groups()[1:])) for item in items if item),
        setting[1],
        setting[2] or "",
    )


@pytest.fixture(params=MINIMUM)
def split(request: pytest.FixtureRequest) -> tuple[str, list[Prompt]]:
    return request.param, load_prompts(DATA / "prompts" / f"{request.param}.txt")


def all_prompts() -> dict[str, list[Prompt]]:
    return {name: load_prompts(DATA / "prompts" / f"{name}.txt") for name in MINIMUM}


def test_every_prompt_is_a_caption_of_the_grammar(split):
    for prompt in split[1]:
        scene = parse(prompt.text)
        assert clips.caption(scene) == prompt.text
        assert prompt.category


def test_two_objects_differ_in_colour(split):
    for prompt in split[1]:
        colours = [item.colour for item in parse(prompt.text).items]
        assert len(set(colours)) == len(colours) <= 2


def test_counts(split):
    name, prompts = split
    assert len(prompts) >= MINIMUM[name]


def test_every_split_goes_from_still_to_hectic(split):
    texts = [prompt.text for prompt in split[1]]
    assert any("stays still" in text and "camera" not in text for text in texts)
    assert any("slowly" in text for text in texts)
    assert any("quickly" in text and "camera" in text for text in texts)


def test_no_prompt_appears_twice():
    texts = [prompt.text for prompts in all_prompts().values() for prompt in prompts]
    assert len(set(texts)) == len(texts)


def test_splits_share_no_category():
    categories = [{p.category for p in prompts} for prompts in all_prompts().values()]
    assert sum(map(len, categories)) == len(set().union(*categories))


@pytest.mark.parametrize("owner", HELD_OUT)
def test_held_out_words_appear_in_one_split_only(owner):
    for name, prompts in all_prompts().items():
        found = {word for word in HELD_OUT[owner] if any(word in p.text for p in prompts)}
        assert found == (set(HELD_OUT[owner]) if name == owner else set())


def test_every_word_of_the_grammar_is_trained_or_tested():
    texts = " ".join(p.text for prompts in all_prompts().values() for p in prompts)
    for words in (clips.COLOURS, clips.SHAPES, clips.MOTIONS, clips.BACKGROUNDS, clips.CAMERAS):
        assert [word for word in words if word not in texts] == []


def test_the_script_writes_the_committed_files(tmp_path):
    for path in make_prompts.write_prompts(tmp_path):
        assert path.read_bytes() == (DATA / "prompts" / path.name).read_bytes()


@pytest.mark.parametrize(("name", "minimum"), [("train", 3), ("test", 3), ("demo", 1)])
def test_configurations(name, minimum):
    configs = load_configs(DATA / "configs" / f"{name}.json")
    assert len(configs) >= minimum
    assert len(set(configs)) == len(configs)
    assert {config.num_frames for config in configs} == {16}


def test_configurations_to_test_on_are_held_out():
    train = {
        (c.height, c.width, c.num_inference_steps)
        for c in load_configs(DATA / "configs/train.json")
    }
    test = {
        (c.height, c.width, c.num_inference_steps) for c in load_configs(DATA / "configs/test.json")
    }
    assert not train & test
