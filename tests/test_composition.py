"""The runtime together with what else people do to a pipeline."""

import threading

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from families import FAMILIES
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

import foresight
from foresight.config import UserError
from foresight.fingerprint import fingerprint
from foresight.plan import COMPUTE, FORECAST, REUSE, Plan
from foresight.policies.fixed import FixedPlan

WAN, LATTE = FAMILIES["Wan 2.1"], FAMILIES["Latte"]
STEPS, BLOCKS = 6, 3


def stack_plan(num_blocks: int = BLOCKS, *, at_output: bool = False) -> Plan:
    computed = np.array([1, 1, 0, 1, 0, 0], bool)
    betas = np.array([0, 0, 0.7, 0, 0, -0.4])
    return Plan.whole_stack(computed, betas, num_blocks, at_output=at_output)


def mixed_plan() -> Plan:
    """The first block of the model is skipped where the others run, and the other way round."""
    actions = np.zeros((STEPS, BLOCKS), np.uint8)
    actions[2, 0] = actions[3, 1:] = REUSE
    actions[4, 0], actions[5] = FORECAST, REUSE
    betas = np.where(actions == FORECAST, np.float32(0.5), np.float32(0))
    return Plan(actions, betas)


def run(family, pipe, plan: Plan, **others) -> torch.Tensor:
    with foresight.reuse(pipe, FixedPlan(plan)) as session:
        latents = family.run(pipe, **others)
    assert (session.report().actions == plan.actions).all()
    return latents


@pytest.fixture
def compiled():
    """Compile a pipeline's blocks one by one; what it gives lists the graphs that were made."""
    torch.compiler.reset()

    def compile_blocks(family, pipe) -> list:
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        for name in family.blocks:
            pipe.transformer.get_submodule(name).compile(backend=backend, fullgraph=True)
        return graphs

    yield compile_blocks
    torch.compiler.reset()


@pytest.mark.parametrize("family", [WAN, LATTE], ids=lambda family: family.name)
def test_compiled_blocks_make_the_graphs_of_the_untouched_pipeline_and_no_more(family, compiled):
    """Whole graphs, for Wan's one class of blocks one; Latte's temporal blocks differ in shape."""
    plan = stack_plan(len(family.blocks))
    expected = run(family, family.build(), plan)
    untouched = family.build()
    plain = compiled(family, untouched)
    family.run(untouched)
    torch.compiler.reset()
    pipe = family.build()
    graphs = compiled(family, pipe)
    with foresight.reuse(pipe, FixedPlan(plan)):
        assert torch.equal(family.run(pipe), expected)
        assert len(graphs) == len(plain)
        assert torch.equal(family.run(pipe), expected)
    with foresight.reuse(pipe, "none"):
        family.run(pipe)
    assert len(graphs) == len(plain)
    assert len(plain) == 1 or family is LATTE


def test_a_transformer_compiled_as_a_whole_is_refused():
    pipe = WAN.build()
    pipe.transformer.compile(backend="eager")
    with pytest.raises(UserError, match="compile_repeated_blocks"):
        foresight.enable(pipe, "none")


@pytest.mark.parametrize("offload_first", [True, False])
@pytest.mark.parametrize("plan", [stack_plan(), mixed_plan()], ids=["stack", "mixed"])
def test_no_block_runs_while_its_group_is_offloaded(monkeypatch, offload_first, plan):
    """Onload and offload are watched, since on one device they move nothing."""
    pipe = WAN.build()
    expected = run(WAN, pipe, plan)
    here: dict[int, bool] = {}
    owners: dict[int, ModuleGroup] = {}

    def watched(name, state):
        original = getattr(ModuleGroup, name)

        def act(group):
            for module in group.modules:
                owners[id(module)] = group
            here[id(group)] = state
            original(group)

        monkeypatch.setattr(ModuleGroup, name, act)

    watched("onload_", True)
    watched("offload_", False)
    ran = []

    def check(module, *_):
        ran.append(here[id(owners[id(module)])])

    blocks = [pipe.transformer.get_submodule(name) for name in WAN.blocks]
    for block in blocks:
        block.attn1.register_forward_pre_hook(lambda _, args, block=block: check(block))

    def offload():
        cpu = torch.device("cpu")
        apply_group_offloading(
            pipe.transformer,
            onload_device=cpu,
            offload_device=cpu,
            offload_type="block_level",
            num_blocks_per_group=2,
        )

    if offload_first:
        offload()
    session = foresight.enable(pipe, FixedPlan(plan))
    if not offload_first:
        offload()
    assert torch.equal(WAN.run(pipe), expected)
    foresight.disable(pipe)
    assert (session.report().actions == plan.actions).all()
    assert len(ran) == 2 * (plan.actions == COMPUTE).sum()
    assert all(ran)


class SequenceShard(ModelHook):
    """Half of the tokens on entry, all of them on exit, as context parallelism with two ranks."""

    def __init__(self, *, enters: bool) -> None:
        super().__init__()
        self.enters, self.calls = enters, 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        if self.enters:
            hidden, *rest = args
            half = hidden.shape[1] // 2
            rotary = tuple(part[:, :half] for part in rest[2])
            args = (hidden[:, :half], *rest[:2], rotary, *rest[3:])
        return args, kwargs

    def post_forward(self, module, output):
        return output if self.enters else torch.cat([output, output.flip(1)], dim=1)


@pytest.mark.parametrize("shard_first", [True, False])
def test_what_context_parallelism_does_to_the_sequence_happens_at_skipped_blocks_too(shard_first):
    """One block, so that the shard is made and undone around what is skipped."""
    plan = Plan.from_actions(np.array([0, 0, 1, 0, 1, 1], np.uint8)[:, None])
    by_hand, sharded = WAN.build(), WAN.build()
    for pipe in (by_hand, sharded):
        pipe.transformer.blocks = torch.nn.ModuleList(pipe.transformer.blocks[:1])
    kept: dict[int, torch.Tensor] = {}
    block, calls = by_hand.transformer.blocks[0], iter(range(2 * STEPS))
    forward = block.forward

    def local(hidden, text, time, rotary, *rest):
        step, branch = divmod(next(calls), 2)
        half = hidden.shape[1] // 2
        mine = hidden[:, :half]
        if plan.actions[step, 0] == COMPUTE:
            kept[branch] = forward(mine, text, time, tuple(r[:, :half] for r in rotary)) - mine
        output = mine + kept[branch]
        return torch.cat([output, output.flip(1)], dim=1)

    block.forward = local
    expected = WAN.run(by_hand)

    hooks = [SequenceShard(enters=False), SequenceShard(enters=True)]

    def shard():
        registry = HookRegistry.check_if_exists_or_initialize(sharded.transformer.blocks[0])
        for number, hook in enumerate(hooks):
            registry.register_hook(hook, f"shard_{number}")

    if shard_first:
        shard()
    foresight.enable(sharded, FixedPlan(plan), blocks=["blocks.0"])
    if not shard_first:
        shard()
    torch.testing.assert_close(WAN.run(sharded), expected, rtol=1e-4, atol=1e-5)
    assert [hook.calls for hook in hooks] == [2 * STEPS, 2 * STEPS]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at_output", [False, True])
def test_half_precision_is_kept(dtype, at_output):
    pipe = WAN.build()
    pipe.transformer.to(dtype)
    kept = []
    with foresight.reuse(pipe, FixedPlan(stack_plan(at_output=at_output))) as session:
        handle = pipe.transformer.register_forward_hook(
            lambda *_: kept.extend(
                tensor.dtype
                for branch in session._models[0].branches.values()
                for tensors in (*branch.latest.values(), *branch.predictions)
                for tensor in tensors
            )
        )
        latents = WAN.run(pipe)
        handle.remove()
    assert set(kept) == {dtype}
    assert latents.isfinite().all()
    full = run(WAN, WAN.build(), stack_plan(at_output=at_output))
    assert (latents - full).abs().max() < 0.2 * full.std()


def with_lora(*, fused: bool):
    pipe = WAN.build()
    torch.manual_seed(0)
    pipe.transformer.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    if fused:
        pipe.transformer.fuse_lora()
    return pipe


@pytest.mark.parametrize("fused", [False, True], ids=["loaded", "fused"])
def test_lora_is_part_of_what_is_computed(fused):
    pipe = with_lora(fused=fused)
    plain = WAN.run(pipe)
    assert not torch.allclose(plain, WAN.run(WAN.build()))
    with foresight.reuse(pipe, "none"):
        assert torch.equal(WAN.run(pipe), plain)
    torch.testing.assert_close(
        run(WAN, pipe, mixed_plan()), run(WAN, with_lora(fused=not fused), mixed_plan())
    )


@pytest.mark.parametrize("fused", [False, True], ids=["loaded", "fused"])
def test_lora_is_a_fine_tune_of_the_model(fused):
    known, found = fingerprint(WAN.build()), fingerprint(with_lora(fused=fused))
    assert {key for key in known if known[key] != found[key]} == {"weights_hash"}


class Int8Linear(torch.nn.Module):
    """A linear layer with eight-bit weights, as quantisers put in; no `nn.Linear`."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


def test_quantised_linears():
    pipe = WAN.build()
    for block in pipe.transformer.blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, torch.nn.Linear):
                parent = block.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], Int8Linear(module))
    plain = WAN.run(pipe)
    with foresight.reuse(pipe, "none") as session:
        assert torch.equal(WAN.run(pipe), plain)
    assert session.report().block_names == list(WAN.blocks)
    run(WAN, pipe, stack_plan())


def test_two_pipelines_in_two_threads_do_not_meet():
    jobs = [(WAN, stack_plan()), (WAN, mixed_plan())]
    alone = [run(family, family.build(), plan) for family, plan in jobs]
    # Built here, since building draws from the global generator, which threads share.
    pipes = [family.build() for family, _ in jobs]
    found: dict[int, torch.Tensor] = {}
    start = threading.Barrier(len(jobs))

    def work(number):
        start.wait()
        for _ in range(3):
            found[number] = run(jobs[number][0], pipes[number], jobs[number][1])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        assert torch.equal(found[number], expected)


def test_another_cache_is_refused_both_ways_round():
    pipe = WAN.build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(UserError, match="FirstBlockCacheConfig"):
        foresight.enable(pipe, "none")
    pipe.transformer.disable_cache()
    with foresight.reuse(pipe, "none"):
        with pytest.raises(ValueError, match=r"already been enabled with .*foresight policy"):
            pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
        apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=0.1))
        with pytest.raises(UserError, match="another cache"):
            WAN.run(pipe)
    assert not pipe.transformer.is_cache_enabled


class ScalarReads(TorchDispatchMode):
    """Counts values read from tensors into Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", [WAN, LATTE, FAMILIES["CogVideoX"]], ids=lambda f: f.name)
@pytest.mark.parametrize("at_output", [False, True])
def test_a_planned_policy_reads_no_scalar_in_the_loop(family, at_output):
    """Over the whole generation, with what hooks and sessions do around it."""
    pipe = family.build()
    plan = stack_plan(len(family.blocks), at_output=at_output)
    with ScalarReads() as plain:
        family.run(pipe)
    reads = ScalarReads()
    with foresight.reuse(pipe, FixedPlan(plan)), reads:
        family.run(pipe)
    assert plain.count > 0  # the schedulers' own, between forward passes
    assert reads.count <= plain.count
    with foresight.reuse(pipe, "foresight[warmup_steps=3,threshold=2]"), ScalarReads() as reactive:
        family.run(pipe)
    assert reactive.count > plain.count
