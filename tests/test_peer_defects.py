"""What peers do wrong in the versions that we pin: diffusers 0.42 and cache-dit 1.5.

A test that fails after an upgrade tells that the defect is gone: lift the refusal in
`foresight/peers`, and the line in `docs/peers.md`.
"""

import contextlib
import dataclasses

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from families import FAMILIES
from latte_by_hand import ordered_blocks, to_temporal
from peer_pipelines import running

from foresight.policies import load_policy

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # diffusers' FasterCache
    pytest.mark.filterwarnings("ignore::DeprecationWarning:cache_dit"),
]


@contextlib.contextmanager
def diffusers_cache(pipe, config):
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


def hook_names(pipe) -> set[str]:
    registries = [getattr(m, "_diffusers_hook", None) for m in pipe.transformer.modules()]
    return {name for registry in registries if registry is not None for name in registry.hooks}


@pytest.mark.parametrize("family", ["Latte", "Wan 2.1", "CogVideoX", "LTX-Video", "Mochi"])
def test_defect_taylorseer_by_default_hooks_nothing(family) -> None:
    pipe = FAMILIES[family].build()
    with diffusers_cache(pipe, TaylorSeerCacheConfig()):
        assert hook_names(pipe) == set()
    with diffusers_cache(pipe, TaylorSeerCacheConfig(cache_identifiers=[r".*blocks\.\d+"])):
        assert hook_names(pipe) == {"taylorseer_cache"}


def test_defect_pab_gives_the_unconditional_branch_the_conditional_ones_attention() -> None:
    pipe = FAMILIES["Wan 2.1"].build()
    attention = pipe.transformer.blocks[1].attn1
    calls = [0]
    original = attention.forward

    def counted(*args, **kwargs):
        calls[0] += 1
        return original(*args, **kwargs)

    attention.forward = counted
    outputs = []
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    with diffusers_cache(pipe, config):
        attention.register_forward_hook(lambda _, __, output: outputs.append(output))
        FAMILIES["Wan 2.1"].run(pipe)
    assert calls[0] == 6  # of 12: the conditional branch in every step, the other one never
    assert all(a is b for a, b in zip(outputs[::2], outputs[1::2], strict=True))


def test_defect_pab_by_default_takes_temporal_attention_for_spatial() -> None:
    pipe = FAMILIES["Latte"].build()
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        temporal_attention_block_skip_range=4,
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    with diffusers_cache(pipe, config):
        attention = pipe.transformer.temporal_transformer_blocks[0].attn1
        (hook,) = attention._diffusers_hook.hooks.values()
        assert hook.block_skip_range == 2


@pytest.mark.parametrize(
    "config",
    [
        FirstBlockCacheConfig(threshold=0),
        MagCacheConfig(mag_ratios=[1.0] * 6, num_inference_steps=6, max_skip_steps=0),
    ],
)
def test_defect_one_stack_caches_fail_on_latte(config) -> None:
    pipe = FAMILIES["Latte"].build()
    named = pipe.transformer.cache_context("both")
    with diffusers_cache(pipe, config), named, pytest.raises(RuntimeError, match="size of tensor"):
        FAMILIES["Latte"].run(pipe)


def test_defect_magcache_is_silently_wrong_on_latte_where_frames_equal_tokens() -> None:
    family = FAMILIES["Latte"]
    family = dataclasses.replace(family, call={**family.call, "height": 8, "width": 8})
    pipe = family.build()  # 4 frames of 2x2 patches
    config = MagCacheConfig(
        mag_ratios=[1.0] * 6, num_inference_steps=6, max_skip_steps=9, retention_ratio=0.0
    )
    with diffusers_cache(pipe, config):
        cached = family.run(pipe)
    blocks, kept, step = ordered_blocks(pipe.transformer), {}, [-1]

    def head(stream, *args):
        step[0] += 1
        kept["start"] = stream
        return (
            stream + kept["residual"]
            if step[0]
            else type(blocks[0]).forward(blocks[0], stream, *args)
        )

    def tail(stream, *args):
        if step[0]:
            return to_temporal(kept["start"] + kept["residual"], 2)
        output = type(blocks[0]).forward(blocks[-1], stream, *args)
        kept["residual"] = to_temporal(output, 2) - kept["start"]
        return output

    for block in blocks[1:-1]:
        block.forward = lambda stream, *args, block=block: (
            stream if step[0] else type(block).forward(block, stream, *args)
        )
    blocks[0].forward, blocks[-1].forward = head, tail
    right = family.run(pipe)
    assert (cached - right).norm() > 0.1 * right.norm()


def test_defect_seacache_does_nothing_on_latte() -> None:
    pipe = FAMILIES["Latte"].build()
    uncached = FAMILIES["Latte"].run(pipe)
    with diffusers_cache(pipe, SeaCacheConfig(threshold=9)), pipe.transformer.cache_context("both"):
        assert torch.equal(FAMILIES["Latte"].run(pipe), uncached)


def test_defect_cache_dit_is_wrong_on_latte_even_when_nothing_is_cached() -> None:
    cache_dit = pytest.importorskip("cache_dit")
    pipe = FAMILIES["Latte"].build()
    uncached = FAMILIES["Latte"].run(pipe)
    idle = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, residual_diff_threshold=0.0, max_warmup_steps=99
    )
    with pytest.raises(ValueError, match="not officially supported"):
        cache_dit.enable_cache(pipe, cache_config=idle)
    adapter = cache_dit.BlockAdapter(
        pipe=pipe,
        transformer=pipe.transformer,
        blocks=[pipe.transformer.transformer_blocks, pipe.transformer.temporal_transformer_blocks],
        forward_pattern=[cache_dit.ForwardPattern.Pattern_3] * 2,
        check_forward_pattern=False,
    )
    cache_dit.enable_cache(adapter, cache_config=idle)
    made_up = FAMILIES["Latte"].run(pipe)
    cache_dit.disable_cache(pipe)
    assert (made_up - uncached).norm() > 0.01 * uncached.norm()


def test_defect_cache_dit_does_not_know_ltx_2s_arguments() -> None:
    pytest.importorskip("cache_dit")
    pipe = FAMILIES["LTX-2"].build()
    policy = load_policy("cache-dit")
    with running(pipe, policy), pytest.raises(TypeError, match="sigma"):
        FAMILIES["LTX-2"].run(pipe)
