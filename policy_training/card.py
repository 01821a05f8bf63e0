"""The model card of a policy, filled with what was measured on held-out prompts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from foresight.policies.promise import QualityPromise
from policy_training.baselines import Score
from policy_training.config import TrainConfig
from policy_training.generations import ProfiledGeneration, configuration

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}: a reuse policy for {{ model_id }}

Before the first denoising step this network says, for the prompt and the configuration at hand,
what reusing or forecasting each block's residual would cost; a planner turns that into a plan for
a given speed-up. It was trained for one model and refuses others:

| | |
|---|---|
{% for key, value in model %}| {{ key }} | {{ value }} |
{% endfor %}
## Use

```python
import foresight

policy = foresight.load_policy("{{ name }}")  # this folder
with foresight.reuse(pipe, policy, speedup=2.0) as session:
    # profiled at {{ config }}
    video = pipe("{{ prompt }}").frames[0]
print(session.report())
```

## Training data

{{ num_train }} generations to train on and {{ num_held_out }} held out; no prompt is on both sides.
{{ num_rollouts }} roll-outs (generations executed with a plan) measure what errors do to the video.

| configuration | generations |
|---|---|
{% for key, value in configs %}| {{ key }} | {{ value }} |
{% endfor %}
{{ cost_sentence }}

## Measured on held-out prompts

A query asks of one generation and one block (or the model's output) at one step, given the steps
computed before. Of {{ num_queries }} queries {{ safe_percent }} % are safe to reuse: the residual
has changed by at most {{ tolerance_percent }} % of its own norm.

| method | average precision of "safe" | Brier score | R2 of log change | forecast gain, dB |
|---|---|---|---|---|
{% for row in scores %}| {{ row.method }} | {{ '%.4f' % row.average_precision }} |\
 {{ '%.3f' % row.brier }} | {{ '%.3f' % row.r2 }} |\
 {{ '%.2f' % row.forecast_db if row.forecast_db == row.forecast_db else '-' }} |
{% endfor %}
The forecast gain is the mean drop of a residual's squared error from reusing the latest one to
forecasting from the last two.

{{ prompt_sentence }}

Of what it says of how fast a prompt's predictions move, {{ trust_percent }} % held on these
prompts, and plans go by as much of it.

{{ rollout_sentence }}

{{ promise_sentence }}

## Limits

* It knows the model, the scheduler and the range of configurations above. Other step counts, sizes
  and guidance scales are extrapolation; another model is refused.
* The traces come from uncached generations, so they understate the error of a trajectory on which
  much has been reused already; only the roll-outs show that, best those of the policy's own plans.
* The prompts held out come from the same files as those trained on.
"""


@dataclass(frozen=True)
class Results:
    """What the card reports; everything measured on the held-out prompts."""

    scores: list[Score]
    """The policy's own row first, its ablations and the baselines after it."""
    num_queries: int
    safe_share: float
    rollout_spearman: float
    """Of predicted against measured error; NaN where too few roll-outs are held out."""
    num_rollouts: int
    """Held-out roll-outs it was measured on."""
    pace_trust: float
    """Share of what is said of a prompt's pace that held."""
    promise: QualityPromise | None
    """What a wanted PSNR is planned with; None where roll-outs are too few."""
    training_seconds: float
    """Of the reaction and of all networks, ablations among them."""


def prompt_sentence(scores: Sequence[Score], *, prompt: bool) -> str:
    """What the prompt embedding adds, in one sentence with the measured numbers."""
    own, rest = scores[0], {row.method: row for row in scores[1:]}
    if not prompt:
        return "The policy was trained without the prompt embedding (`--prompt false`)."
    ablations = [rest[name] for name in ("without prompt", "shuffled prompt") if name in rest]
    if not ablations:
        return "What the prompt embedding adds was not measured (`--ablate false`)."
    parts = [
        f"{own.r2 - row.r2:+.3f} R2, {own.average_precision - row.average_precision:+.3f} average "
        f"precision and {own.forecast_db - row.forecast_db:+.2f} dB of forecast over the network "
        f"trained {'without it' if row.method == 'without prompt' else 'with shuffled prompts'}"
        for row in ablations
    ]
    return f"What the prompt embedding adds: {'; '.join(parts)}."


def cost_sentence(generations: Sequence[ProfiledGeneration], training_seconds: float) -> str:
    """What profiling and training took, in generations of the same mix of configurations.

    Args:
        generations: All that were profiled.
        training_seconds: Of the reaction and of all networks.
    """
    traces = [generation.trace for generation in generations]
    parts = ("text_seconds", "denoise_seconds", "vae_seconds")
    usual = sum(float(trace[part]) for trace in traces for part in parts) / len(traces)
    training = f"training {training_seconds:.0f} s (all networks of this card)"
    if any("profile_seconds" not in trace for trace in traces):
        return f"Of the time, {training}; that of profiling was not recorded."
    profiling = sum(float(trace["profile_seconds"]) for trace in traces)
    return (
        f"Profiling took {profiling:.0f} s, roll-outs included, and {training}: together as long "
        f"as {(profiling + training_seconds) / usual:.0f} uncached generations."
    )


def _rollout_sentence(results: Results) -> str:
    if results.rollout_spearman != results.rollout_spearman:
        return "Too few roll-outs were held out to say how well the video's error is predicted."
    return (
        f"Over {results.num_rollouts} held-out roll-outs the predicted and the measured error of "
        f"the final latents have a Spearman correlation of {results.rollout_spearman:.3f}."
    )


def _promise_sentence(promise: QualityPromise | None) -> str:
    if promise is None:
        return "There were too few roll-outs to promise a quality; `quality=` is refused."
    at = {
        quality: promise.usual_miss((quality - promise.offset) / promise.slope)
        for quality in (30, 45)
    }
    return (
        "A wanted quality (`quality=`) is planned with the margin that roll-outs of other prompts "
        f"need, {len(promise.misses)} of them. What the predicted damage says of the PSNR is "
        f"usually off by {at[30]:.1f} dB at 30 dB and by {at[45]:.1f} dB at 45 dB."
    )


def model_card(
    config: TrainConfig,
    fingerprint: dict[str, Any],
    train: list[ProfiledGeneration],
    held_out: list[ProfiledGeneration],
    results: Results,
) -> ModelCard:
    """Write the card of the policy in `config.output`, made for the model with this fingerprint."""
    name = config.output.resolve().name
    shown = {key: value for key, value in fingerprint.items() if not isinstance(value, list)}
    generations = train + held_out
    return ModelCard.from_template(
        ModelCardData(
            library_name="foresight-reuse",
            tags=["video-generation", "feature-reuse", "diffusers"],
            model_name=name,
        ),
        template_str=_TEMPLATE,
        name=name,
        model_id=fingerprint.get("id", "the profiled model"),
        model=list(shown.items()),
        configs=sorted(Counter(str(configuration(g.trace)) for g in generations).items()),
        prompt=generations[0].trace["prompt"],
        config=str(configuration(generations[0].trace)),
        num_train=len(train),
        num_held_out=len(held_out),
        num_rollouts=sum(len(g.rollouts) for g in generations),
        num_queries=f"{results.num_queries:,}",
        safe_percent=f"{100 * results.safe_share:.0f}",
        tolerance_percent=f"{100 * config.tolerance:g}",
        cost_sentence=cost_sentence(generations, results.training_seconds),
        scores=results.scores,
        trust_percent=f"{100 * results.pace_trust:.0f}",
        prompt_sentence=prompt_sentence(results.scores, prompt=config.prompt),
        rollout_sentence=_rollout_sentence(results),
        promise_sentence=_promise_sentence(results.promise),
    )
