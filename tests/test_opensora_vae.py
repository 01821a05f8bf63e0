import diffusers.models.autoencoders.vae as diffusers_vae
import pytest
import torch
from opensora_fixtures import case, facts, small_vae, tensors
from torch.testing import assert_close

from foresight.config import UserError
from foresight.models import AutoencoderKLOpenSora

LIMITS = {"rtol": 0, "atol": 2e-5}
CASES = list(facts("vae_A")["cases"])


@pytest.fixture(scope="module")
def vae():
    return small_vae()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_latents_are_those_of_the_reference(vae, name, monkeypatch):
    given = case("vae_A_cases", name)
    posterior = vae.encode(given["in.video"]).latent_dist
    assert_close(posterior.mode(), given["enc_mode.z"], **LIMITS)
    frames = given["noise_spatial"].transpose(1, 2).flatten(0, 1)
    draws = [*frames.split(4), *given["noise_temporal"].split(5, dim=2)]

    def drawn(shape, **_):
        draw = draws.pop(0)
        assert draw.shape == shape
        return draw

    monkeypatch.setattr(diffusers_vae, "randn_tensor", drawn)
    assert_close(posterior.sample(), given["enc.z"], **LIMITS)
    assert not draws


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_videos_are_those_of_the_reference(vae, name):
    given = case("vae_A_cases", name)
    for run, latents in (("dec", given["enc.z"]), ("dec_rand", given["dec_rand.z"])):
        video = vae.decode(latents, num_frames=given["in.video"].shape[2]).sample
        assert_close(video, given[f"{run}.video"], **LIMITS)


def test_full_size_vae_has_the_names_and_shapes_of_the_checkpoint():
    with torch.device("meta"):
        vae = AutoencoderKLOpenSora()
    layout = facts("real_layout")["vae_v1_2"]
    assert {k: list(v.shape) for k, v in vae.state_dict().items()} == layout["tensors"]
    assert sum(p.numel() for p in vae.spatial_vae.parameters()) == 83_653_863
    assert sum(p.numel() for p in vae.temporal_vae.parameters()) == 309_687_144


@torch.no_grad()
def test_micro_batches_change_no_value(vae):
    video = case("vae_A_cases", "clip34")["in.video"]
    one_by_one = AutoencoderKLOpenSora(**{**facts("vae_A")["config"], "micro_batch_size": 1})
    one_by_one.load_state_dict(tensors("vae_A_weights"))
    latents = vae.encode(video).latent_dist.mode()
    assert_close(one_by_one.encode(video).latent_dist.mode(), latents, **LIMITS)
    assert_close(one_by_one.decode(latents, 34).sample, vae.decode(latents, 34).sample, **LIMITS)


@pytest.mark.parametrize(
    ("frames", "latents"), [(1, 1), (3, 1), (17, 5), (40, 12), (51, 15), (102, 30), (408, 120)]
)
def test_numbers_of_latent_frames(vae, frames, latents):
    assert vae.latent_size(frames, 240, 426) == (latents, 30, 53)


@torch.no_grad()
def test_lengths_between_chunks_come_back(vae):
    video = torch.rand(1, 3, 20, 16, 16) * 2 - 1
    latents = vae.encode(video).latent_dist.mode()
    assert latents.shape == (1, 4, 6, 2, 2)
    assert vae.decode(latents, 20).sample.shape == video.shape
    with pytest.raises(UserError, match="34 frames are 10 latents, not 6"):
        vae.decode(latents, 34)


def test_saved_vae_loads_strictly(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKLOpenSora.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    weights = vae.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
    config = {**facts("vae_A")["config"], "vae_temporal": {"filters": 8, "num_groups": 4}}
    AutoencoderKLOpenSora(**config).save_config(tmp_path)  # four residual blocks rather than two
    with pytest.raises(UserError, match=r"missing \['temporal_vae.decoder.block_res_blocks.0.2"):
        AutoencoderKLOpenSora.from_pretrained(tmp_path, low_cpu_mem_usage=False)
