"""Blocks found by watching: checked on small modules whose order and streams are plain to see."""

import functools

import pytest
import torch
from torch import nn

from foresight.blocks import find_blocks
from foresight.config import UserError
from foresight.observing import Streams, observe


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return x + self.linear(x) * scale


class TwoStreams(nn.Module):
    """Returns text before video, and takes them the other way round; both of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Layer()

    def forward(self, hidden_states, encoder_hidden_states, mask=None):
        mixed = self.inner(hidden_states + encoder_hidden_states)
        return encoder_hidden_states + mixed, hidden_states - mixed


class Model(nn.Module):
    """Four single-stream layers in the order 1, 0, 3, 2, then three of two streams."""

    def __init__(self) -> None:
        super().__init__()
        self.singles = nn.ModuleList([Layer() for _ in range(4)])
        self.doubles = nn.ModuleList([TwoStreams() for _ in range(3)])
        self.refiner = nn.Sequential(nn.Linear(4, 4), nn.ModuleList([Layer(), Layer()]))
        self.reads_values = False
        self.repeats = 1
        self.real_passes = 0

    def forward(self, x, text):
        if self.reads_values and float(x.sum()) > 1e9:
            raise AssertionError
        self.real_passes += x.device.type != "meta"
        text = self.refiner[0](text)
        for index in (1, 0, 3, 2):
            for _ in range(self.repeats):
                x = self.singles[index](x, scale=0.5)
        for block in self.doubles:
            text, x = block(x, encoder_hidden_states=text)
        return x


ORDER = ["singles.1", "singles.0", "singles.3", "singles.2", *(f"doubles.{i}" for i in range(3))]


def never(_) -> None:
    raise AssertionError("the model was run for real")


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, 4), torch.randn(2, 3, 4)


def test_order_and_streams_are_seen_without_running_the_model(model, inputs):
    seen = observe(model, find_blocks(model), inputs, {}, never)
    assert [block.name for block in seen.blocks] == ORDER
    assert seen.streams[0] == Streams((0,), None)
    assert seen.streams[4] == Streams(("encoder_hidden_states", 0), (True, True))
    assert model.real_passes == 0


def test_what_was_seen_is_remembered_for_the_model(model, inputs):
    first = observe(model, find_blocks(model), inputs, {}, never)
    assert observe(model, find_blocks(model), (None,), {}, never) is first


def test_streams_read_unpack_and_pack_are_one_round(model, inputs):
    streams = observe(model, find_blocks(model), inputs, {}, never).streams[4]
    x, text = inputs
    assert streams.read((x,), {"encoder_hidden_states": text}) == (text, x)
    returned = model.doubles[0](x, text)
    assert streams.pack(streams.unpack(returned)) == returned
    partly = Streams((0,), (True, False))
    assert partly.unpack((x, None)) == (x,)
    assert partly.pack((x,)) == (x, None)


def test_a_model_that_reads_values_is_watched_for_real(model, inputs):
    model.reads_values = True

    def run(watcher):
        for name, module in model.named_modules():
            if name in ORDER:
                module.forward = functools.partial(watcher.run, name, module.forward)
        model(*inputs)

    seen = observe(model, find_blocks(model), inputs, {}, run)
    assert [block.name for block in seen.blocks] == ORDER
    assert seen.streams[4] == Streams(("encoder_hidden_states", 0), (True, True))
    assert model.real_passes == 1


def test_hooks_of_others_do_not_see_the_watching(model, inputs):
    met = []
    model.register_forward_pre_hook(lambda *_: met.append("model"))
    model.singles[0].register_forward_hook(lambda *_: met.append("block"))
    original = model.singles[1].forward
    model.singles[1].forward = lambda *a, **k: met.append("forward") or original(*a, **k)
    observe(model, find_blocks(model), inputs, {}, never)
    assert met == []


def test_the_lists_nearest_to_the_root_are_the_blocks(model):
    assert {block.kind for block in find_blocks(model)} == {"singles", "doubles"}


def test_blocks_can_be_named(model, inputs):
    blocks = find_blocks(model, ["doubles.2", "singles.1"])
    seen = observe(model, blocks, inputs, {}, never)
    assert [block.name for block in seen.blocks] == ["singles.1", "doubles.2"]


def test_what_cannot_be_reused_is_refused_by_name(model, inputs):
    with pytest.raises(UserError, match=r"singles\.9.*singles, doubles, refiner"):
        find_blocks(model, ["singles.9"])
    with pytest.raises(UserError, match="no list of two or more alike"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(UserError, match=r"Model: no block is given a stream"):
        observe(model, find_blocks(model, ["refiner.1.0"]), inputs, {}, never)
    head = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(UserError, match=r"block 0 of Sequential returns \(2, 3, 5\)"):
        observe(head, find_blocks(head, ["0"]), inputs[:1], {}, never)


def test_a_block_that_runs_twice_is_refused(model, inputs):
    model.repeats = 2
    with pytest.raises(UserError, match=r"singles\.1 of Model ran 2 times"):
        observe(model, find_blocks(model), inputs, {}, never)


class Adapter(nn.Module):
    """What it returns is added to the stream by the model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        return self.linear(x)


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Layer() for _ in range(4)])
        self.adapters = nn.ModuleList([Adapter(), Adapter()])

    def forward(self, x):
        shift = torch.ones(4, device=x.device)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == 0:
                x = x.reshape(-1, 4).reshape(x.shape) + shift
            if index % 2:
                x = x + 0.5 * self.adapters[index // 2](x)
        return x


def test_modules_whose_result_the_model_adds_are_no_blocks_and_divide_them(inputs):
    model = Adapted()
    seen = observe(model, find_blocks(model), inputs[:1], {}, never)
    assert [block.name for block in seen.blocks] == [f"blocks.{i}" for i in range(4)]
    assert seen.groups[0] == seen.groups[1] != seen.groups[2] == seen.groups[3]
