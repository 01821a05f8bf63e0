"""Two things in one prompt: the text encoder must know whose word is whose."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import T5EncoderModel, UMT5EncoderModel

from foresight.models import clips
from foresight.models.architecture import TEXT_WIDTH, build_tokenizer
from foresight.models.clauses import ClauseLoss
from foresight.models.denoiser import make_optimizers
from foresight.models.objectives import TEXT_LENGTH
from foresight.models.recipes import RECIPES

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
ENCODERS = {"tiny-latte": T5EncoderModel, "tiny-wan": UMT5EncoderModel}
TEXT = "a red circle spins quickly and a blue star grows over a blue sky, the camera zooms in"
PLACES = [0] * 5 + [1] * 5 + [2] * 4 + [3] * 6  # the last counts the end of the text


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def tokenize(tokenizer: Any, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    read = tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt")
    return read.input_ids, read.attention_mask


def load_encoder(name: str) -> torch.nn.Module:
    return ENCODERS[name].from_pretrained(CHECKPOINTS / name / "text_encoder")


def two_things(count: int) -> list[str]:
    rng = np.random.default_rng(11)
    captions = (clips.caption(clips.sample_scene(rng)) for _ in range(3 * count))
    return [caption for caption in captions if " and " in caption][:count]


def fit(probe: torch.nn.Module, loss_of: Any, steps: int = 200) -> float:
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
    return loss_of().item()


def test_every_token_is_told_its_clause(tokenizer):
    loss = ClauseLoss(tokenizer, TEXT_WIDTH)
    ids, mask = tokenize(tokenizer, [TEXT, "a red circle spins over a sunset"])
    places = loss.places(ids)
    assert places[0, : mask[0].sum()].tolist() == PLACES
    assert places[1, : mask[1].sum()].tolist() == [0] * 4 + [2] * 4


def test_words_that_know_their_clause_cost_less_than_words_that_do_not(tokenizer):
    ids, mask = tokenize(tokenizer, two_things(40))
    alone = functional.one_hot(ids, len(tokenizer)).float()
    loss = ClauseLoss(tokenizer, 2 * len(tokenizer))
    places = functional.one_hot(loss.places(ids)).float()
    clause = places @ (places.transpose(1, 2) @ (alone * mask[..., None]))
    knowing = torch.cat([alone, clause], dim=-1)
    unaware = torch.cat([alone, torch.zeros_like(clause)], dim=-1)
    known = fit(loss, lambda: loss(knowing, ids, mask))
    loss = ClauseLoss(tokenizer, 2 * len(tokenizer))
    assert known < 0.25 * fit(loss, lambda: loss(unaware, ids, mask))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_adds_a_tenth_of_the_clause_loss(name, monkeypatch):
    torch.manual_seed(0)
    pipe = RECIPES[name].build()
    objective = RECIPES[name].objective(pipe)
    latents = torch.randn(2, 4, 1, 16, 16)

    def loss_when_clauses_cost(value: float) -> float:
        monkeypatch.setattr(objective.clauses, "forward", lambda *_: torch.tensor(value))
        return objective(latents, [TEXT] * 2, torch.Generator().manual_seed(0)).item()

    with torch.no_grad():
        more = loss_when_clauses_cost(5.0) - loss_when_clauses_cost(0.0)
    assert more == pytest.approx(0.5, abs=1e-4)


def test_padding_counts_for_nothing(tokenizer):
    ids, mask = tokenize(tokenizer, [TEXT])
    loss, embeds = ClauseLoss(tokenizer, TEXT_WIDTH), torch.randn(1, TEXT_LENGTH, TEXT_WIDTH)
    changed = torch.where(mask[..., None].bool(), embeds, torch.randn_like(embeds))
    assert torch.equal(loss(embeds, ids, mask), loss(changed, ids, mask))


@pytest.mark.parametrize(("name", "biases"), [("tiny-latte", 1), ("tiny-wan", 4)])
def test_every_weight_has_one_optimizer(name, biases):
    encoder = load_encoder(name)
    groups = [set(o.param_groups[0]["params"]) for o, _ in make_optimizers([encoder])]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(list(encoder.parameters()))
    assert [parameter.shape for parameter in groups[1]] == biases * [(32, 4)]


@torch.no_grad()
def read_colours(
    encoder: torch.nn.Module, tokenizer: Any, captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What an encoder makes of the colours of things, and which thing's they are."""
    ids, mask = tokenize(tokenizer, captions)
    colours = torch.tensor([tokenizer.convert_tokens_to_ids(f"▁{c}") for c in clips.COLOURS])
    places = ClauseLoss(tokenizer, TEXT_WIDTH).places(ids)
    found = torch.isin(ids, colours) & (places < 2)
    return encoder(input_ids=ids, attention_mask=mask)[0][found], places[found]


@pytest.mark.parametrize("name", ENCODERS)
def test_the_published_encoders_tell_first_thing_from_second(name, tokenizer):
    embeds, places = read_colours(load_encoder(name), tokenizer, two_things(400))
    assert len(places) == 2 * 400
    probe = torch.nn.Linear(TEXT_WIDTH, 2)
    fit(probe, lambda: functional.cross_entropy(probe(embeds[:600]), places[:600]))
    right = probe(embeds[600:]).argmax(dim=1) == places[600:]
    assert right.float().mean() > 0.95
