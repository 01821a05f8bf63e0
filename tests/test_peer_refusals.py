"""Peers where they do not apply, their options, and what a comparison makes of them."""

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from peer_pipelines import made, peer, running

from foresight import evaluation, report
from foresight.config import GenerationConfig, Prompt, UserError
from foresight.models.architecture import build_pipeline
from foresight.peers import PEERS, NotApplicableError, misfits
from foresight.peers.session import PeerSession
from foresight.pipeline import generate
from foresight.policies import load_policy, sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # diffusers' FasterCache
    pytest.mark.filterwarnings("ignore::DeprecationWarning:cache_dit"),
]
REFUSED = {
    "Latte": {"fbcache": "take turns", "magcache": "take turns", "cache-dit": "no adapter"},
    "Wan 2.1": {"pab": "one after the other", "fastercache": "layout of latents"},
    "Wan 2.2": dict.fromkeys(("fbcache", "magcache", "taylorseer", "teacache"), "two transformers"),
    "SkyReels-V2": {"fbcache": "SkyReelsV2TransformerBlock", "pab": "one after the other"},
    "Cosmos 1": {"taylorseer": "no caches for CosmosTransformer3DModel"},
    "CogVideoX": {"teacache": "indicator"},
}


# Refused where they do not apply


@pytest.mark.parametrize("family", REFUSED)
def test_refusals_say_why(family) -> None:
    pipe = FAMILIES[family].build()
    for name, reason in REFUSED[family].items():
        if name == "cache-dit":
            pytest.importorskip("cache_dit")
        with pytest.raises(NotApplicableError, match=f"policy {name} does not apply.*{reason}"):
            load_policy(name).check(pipe)


def test_branches_that_no_context_names_are_noticed_in_the_second_step() -> None:
    pipe = FAMILIES["HunyuanVideo"].build()  # with true_cfg_scale 4, off by default
    policy = load_policy("pab")
    policy.check(pipe)
    with running(pipe, policy), pytest.raises(NotApplicableError, match="one after the other"):
        FAMILIES["HunyuanVideo"].run(pipe)


def test_cache_dit_must_be_installed(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NotApplicableError, match=r"pip install 'foresight-reuse\[peers\]'"):
        load_policy("cache-dit").check(made("Wan 2.1")[0])


def test_two_policies_at_once_are_refused() -> None:
    pipe, _ = made("Wan 2.1")
    with (
        running(pipe, peer("fbcache", "Wan 2.1")),
        pytest.raises(UserError, match="already enabled"),
    ):
        PeerSession(pipe, peer("fbcache", "Wan 2.1")).enable()


@pytest.mark.parametrize("name", PEERS)
def test_sweeps_and_options(name) -> None:
    settings = sweep(name)
    assert len({policy.setting for policy in settings}) == len(settings) >= 5
    for policy in settings:
        assert load_policy(f"{name}[{policy.setting}]") == policy
    with pytest.raises(UserError, match="no option 'nonsense'"):
        load_policy(f"{name}[nonsense=1]")


@pytest.mark.parametrize(
    "spec",
    [
        "pab[spatial=0]",
        "fbcache[threshold=-1]",
        "magcache[retention=2]",
        "taylorseer[outputs=all]",
        "taylorseer[interval=0]",
        "fastercache[uncond=0]",
        "cache-dit[first=0]",
        "cache-dit[taylorseer=-1]",
        "teacache[indicator=noise]",
        "teacache[threshold=-1]",
    ],
)
def test_bad_options(spec) -> None:
    name, _, rest = spec.partition("[")
    with pytest.raises(UserError, match=f"{name}: .*`{rest.partition('=')[0]}`"):
        load_policy(spec)


@pytest.mark.parametrize("name", ["magcache", "teacache"])
def test_calibration_is_not_forgotten(name) -> None:
    pipe, _ = made("Wan 2.1")
    with running(pipe, load_policy(name)), pytest.raises(UserError, match="not calibrated"):
        FAMILIES["Wan 2.1"].run(pipe)


# In a comparison


@pytest.fixture(scope="module")
def latte():
    """The embedded model's shape with random weights."""
    torch.manual_seed(0)
    pipe = build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_comparison_leaves_out_what_does_not_apply(
    latte, tmp_path: Path, caplog, monkeypatch
) -> None:
    specs = ["none", "pab[start=2000,end=-1]", "fbcache", "magcache"]
    monkeypatch.setattr(evaluation.metrics, "vmaf", lambda *_: 100.0)  # slow, and not looked at
    config = GenerationConfig(32, 32, 16, 4, 3.0)
    results = evaluation.compare(latte, specs, [Prompt("a dot")], [config], output=tmp_path)
    assert list(results["method"]) == ["none", "pab"]
    row = results.iloc[1]
    assert row["psnr"] < 100
    # one attention of every kind computed in the first step, spatial ones in the third; ff always
    spatial, temporal, cross, feed = 2 / 4, 1 / 4, 1 / 4, 1
    assert row["compute_fraction"] == pytest.approx((spatial + temporal + cross + 2 * feed) / 5)
    setup = json.loads((tmp_path / "setup.json").read_text("utf-8"))
    assert set(setup["not_applicable"]) == {"fbcache", "magcache"}
    assert "take turns" in setup["not_applicable"]["fbcache"]
    assert "skipping fbcache, which does not apply to this model" in caplog.text
    page = report.write_report(tmp_path).read_text("utf-8")
    assert "First Block Cache</dt><dd>its spatial and temporal blocks take turns" in page
    again = evaluation.compare(latte, specs, [Prompt("a dot")], [config], output=tmp_path)
    assert list(again["method"]) == ["none", "pab"]


def test_a_comparison_of_nothing_that_applies_is_refused(latte, tmp_path: Path) -> None:
    config = GenerationConfig(32, 32, 16, 4, 3.0)
    with pytest.raises(UserError, match="none of them applies"):
        evaluation.compare(latte, ["fbcache"], [Prompt("a")], [config], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_peer_that_does_not_apply_is_the_error(latte) -> None:
    config = GenerationConfig(32, 32, 16, 4, 3.0)
    with pytest.raises(NotApplicableError, match="fbcache does not apply to LattePipeline"):
        generate(latte, "a dot", config, seed=0, policy=load_policy("fbcache"))


def test_a_peer_is_tried_before_it_is_compared() -> None:
    pipe, uncached = made("Wan 2.1")
    peers = {name: load_policy(name) for name in ("fbcache", "taylorseer", "magcache", "pab")}

    def latents(policy):
        if policy is None or policy.name == "magcache":
            return uncached
        if policy.name == "taylorseer":
            raise TypeError("unexpected keyword argument\nand more")
        return uncached + 0.5 * uncached.norm() / uncached.numel() ** 0.5

    reasons = misfits(pipe, peers, latents)
    assert set(reasons) == {"fbcache", "taylorseer", "pab"}
    assert reasons["fbcache"].endswith("latents are 50% off the uncached run's")
    assert reasons["taylorseer"] == "it fails there with TypeError: unexpected keyword argument"
