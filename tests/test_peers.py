"""Peers where they apply: right, without a trace, and counted truly."""

import dataclasses

import numpy as np
import pytest
import torch
from families import FAMILIES
from peer_pipelines import CONFIG, EAGER, made, peer, running

from foresight.plan import COMPUTE, FORECAST
from foresight.policies import load_policy

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # diffusers' FasterCache
    pytest.mark.filterwarnings("ignore::DeprecationWarning:cache_dit"),
]
FITS = {
    "Latte": ("pab", "taylorseer", "fastercache", "teacache"),
    "Wan 2.1": ("fbcache", "magcache", "taylorseer", "cache-dit", "teacache"),
    "CogVideoX": ("pab", "fbcache", "magcache", "taylorseer", "fastercache", "cache-dit"),
    "LTX-Video": ("pab", "fbcache", "magcache", "taylorseer", "cache-dit"),
}


def anatomy(pipe) -> list:
    """Everything that a peer could leave behind on a pipeline."""
    modules = [
        (name, sorted(vars(m)), vars(m).get("forward"), len(m._forward_hooks))
        for name, m in pipe.transformer.named_modules()
    ]
    return [*modules, sorted(vars(pipe)), type(pipe).__call__, type(pipe.scheduler)]


def stack_by_hand(pipe, family: str, blocks: list, *, head_runs: bool, skips) -> torch.Tensor:
    """Latents where the blocks' residual is reused per CFG branch, from wrappers of our own.

    `skips(step)` says whether a step reuses what the last computed one had added between the head
    (its output if it runs, else its input) and the tail.
    """
    calls = FAMILIES[family].calls
    kept, seen = {}, {"forward": -1}
    originals = [block.forward for block in blocks]

    def wrap(index, forward):
        def run(stream, *args, **kwargs):
            first, last = index == 0, index == len(blocks) - 1
            seen["forward"] += first
            step, branch = divmod(seen["forward"], calls)
            if not skips(step):
                output = forward(stream, *args, **kwargs)
                if first:
                    seen["start"] = output if head_runs else stream
                if last:
                    kept[branch] = output - seen["start"]
                return output
            if first and head_runs:
                stream = forward(stream, *args, **kwargs)
            return stream + kept[branch] if first else stream

        return run

    for index, block in enumerate(blocks):
        block.forward = wrap(index, originals[index])
    try:
        return FAMILIES[family].run(pipe)
    finally:
        for block in blocks:
            del block.forward


# Right where they apply


@pytest.mark.parametrize(
    ("family", "name"), [(family, name) for family, names in FITS.items() for name in names]
)
def test_changes_nothing_while_it_skips_nothing_and_leaves_no_trace(family, name) -> None:
    pipe, uncached = made(family)
    before = anatomy(pipe)
    idle = peer(name, family).inert()
    eager = peer(EAGER[name], family)
    assert anatomy(pipe) == before  # calibration too
    with running(pipe, idle) as session:
        assert torch.equal(FAMILIES[family].run(pipe), uncached)
        assert session.report().compute_fraction == 1
    with running(pipe, eager) as session:
        first = FAMILIES[family].run(pipe)
        second = FAMILIES[family].run(pipe)
        told = session.report()
    assert torch.equal(first, second)
    assert 0 < (first - uncached).norm() / uncached.norm() < 1
    assert 0.1 < told.compute_fraction < 0.95
    assert told.cache_bytes > 0
    assert anatomy(pipe) == before
    assert torch.equal(FAMILIES[family].run(pipe), uncached)


@pytest.mark.parametrize(
    ("family", "name"), [("Wan 2.1", n) for n in FITS["Wan 2.1"]] + [("Latte", "pab")]
)
def test_a_stopped_generation_leaves_no_state_to_the_next(family, name) -> None:
    pipe, _ = made(family)

    def stop(_, step, *__):
        if step == 3:
            raise InterruptedError
        return {}

    with running(pipe, peer(EAGER[name], family)):
        alone = FAMILIES[family].run(pipe)
        with pytest.raises(InterruptedError):
            FAMILIES[family].run(pipe, seed=1, callback_on_step_end=stop)
        assert torch.equal(FAMILIES[family].run(pipe), alone)


@pytest.mark.parametrize(
    ("name", "head_runs", "first_skip"),
    [("fbcache", True, 1), ("magcache", False, 1), ("cache-dit", True, 1), ("teacache", False, 5)],
)
def test_each_branch_reuses_its_own_residual(name, head_runs, first_skip) -> None:
    pipe, _ = made("Wan 2.1")
    with running(pipe, peer(EAGER[name], "Wan 2.1")):
        cached = FAMILIES["Wan 2.1"].run(pipe)
    by_hand = stack_by_hand(
        pipe,
        "Wan 2.1",
        list(pipe.transformer.blocks),
        head_runs=head_runs,
        skips=lambda step: step >= first_skip,
    )
    torch.testing.assert_close(cached, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["Wan 2.1", "Latte"])
def test_taylorseer_lite_forecasts_the_output(family) -> None:
    pipe, _ = made(family)
    spec = "taylorseer[interval=3,warmup_steps=2,outputs=lite]"
    with running(pipe, peer(spec, family)) as session:
        cached = FAMILIES[family].run(pipe)
        actions = session.report().actions
    computed = [0, 1, 3]  # diffusers: from `warmup_steps` on, where (step - warmup) % interval is 1
    expected = np.full(actions.shape, FORECAST)
    expected[computed] = COMPUTE
    assert np.array_equal(actions, expected)
    calls, seen, kept = FAMILIES[family].calls, [-1], {}
    original = pipe.transformer.forward

    def forward(*args, **kwargs):
        seen[0] += 1
        step, branch = divmod(seen[0], calls)
        past = kept.setdefault(branch, [])
        if step in computed:
            past.append((step, original(*args, **kwargs)[0]))
            return (past[-1][1],)
        (before, older), (last, latest) = past[-2:]
        return (latest + (step - last) * (latest - older) / (last - before),)

    pipe.transformer.forward = forward
    by_hand = FAMILIES[family].run(pipe)
    del pipe.transformer.forward
    torch.testing.assert_close(cached, by_hand, rtol=1e-4, atol=1e-5)


def test_pab_computes_each_kind_of_attention_at_its_own_range() -> None:
    pipe, _ = made("Latte")
    spec = "pab[spatial=2,temporal=3,cross=5,start=800,end=100]"
    with running(pipe, peer(spec, "Latte")) as session:
        FAMILIES["Latte"].run(pipe)
        told = session.report()
        timesteps = session.clock.scheduler.timesteps.tolist()
    parts = dict(zip(told.block_names, told.actions.T, strict=True))
    for name, interval in (
        ("transformer_blocks.1.attn1", 2),
        ("temporal_transformer_blocks.1.attn1", 3),
        ("transformer_blocks.1.attn2", 5),
        ("transformer_blocks.1.ff", 1),
    ):
        runs = [s % interval == 0 or not 100 < t < 800 for s, t in enumerate(timesteps)]
        assert (parts[name] == COMPUTE).tolist() == runs, name


# Counted truly


def test_fastercache_is_counted_by_rows() -> None:
    pipe, _ = made("Latte")
    with running(pipe, peer("fastercache[uncond=3,attention=2,start=2000]", "Latte")) as session:
        FAMILIES["Latte"].run(pipe)
        told = session.report()
    share = dict(zip(told.block_names, told.shares.T, strict=True))
    # feed-forward: one branch of two between whole steps 0 and 3; attention: of those, even ones
    assert share["transformer_blocks.0.ff"].tolist() == [1, 0.5, 0.5, 1, 0.5, 0.5]
    assert share["transformer_blocks.0.attn1"].tolist() == [1, 0, 0.5, 1, 0.5, 0]


def test_cache_bytes_are_those_of_the_tensors_held() -> None:
    pipe, _ = made("Wan 2.1")
    tokens, width = 3 * 2 * 2, 24  # 9 frames, 32x32, patches of 1x2x2; float32
    with running(pipe, peer(EAGER["fbcache"], "Wan 2.1")) as session:
        FAMILIES["Wan 2.1"].run(pipe)
        # per branch: the head's output, its residual, the tail's residual
        assert session.report().cache_bytes == 2 * 3 * tokens * width * 4


def test_magcache_is_calibrated_once_with_the_mean_ratio_of_norms() -> None:
    pipe = FAMILIES["Wan 2.1"].build()
    runs = []

    def run():
        runs.append(FAMILIES["Wan 2.1"].run(pipe))

    policy = load_policy("magcache").prepared(pipe, CONFIG, run)
    again = load_policy("magcache[max_skips=4]").prepared(pipe, CONFIG, run)
    assert len(runs) == 1
    assert policy.ratios == again.ratios
    load_policy("magcache").prepared(pipe, dataclasses.replace(CONFIG, height=48), run)
    assert len(runs) == 2
    streams = []
    blocks = pipe.transformer.blocks
    handles = [
        blocks[0].register_forward_pre_hook(lambda _, args: streams.append(args[0])),
        blocks[-1].register_forward_hook(lambda _, __, out: streams.append(out)),
    ]
    FAMILIES["Wan 2.1"].run(pipe)
    for handle in handles:
        handle.remove()
    norms = [(b - a).norm(dim=-1) for a, b in zip(streams[::2], streams[1::2], strict=True)]
    norms = [norms[branch::2] for branch in (0, 1)]
    expected = [1.0]
    expected += [np.mean([float((n[s] / n[s - 1]).mean()) for n in norms]) for s in range(1, 6)]
    assert policy.ratios == pytest.approx(expected, rel=1e-4)


def test_teacache_has_two_modes_on_wan() -> None:
    pipe, _ = made("Wan 2.1")
    shares = {}
    for kind in ("modulation", "time"):
        spec = f"teacache[threshold=9,indicator={kind}]"
        with running(pipe, peer(spec, "Wan 2.1")) as session:
            FAMILIES["Wan 2.1"].run(pipe)
            shares[kind] = session.report().shares[:, 0].tolist()
    assert shares == {"modulation": [1, 1, 1, 1, 1, 0], "time": [1, 0, 0, 0, 0, 1]}
