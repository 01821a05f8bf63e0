"""Whose word is whose: a loss that has a text encoder tie every word to its clause.

A denoiser that reads "a red circle ... and a blue star ..." must know that the red is the circle's.
Its own loss hardly teaches that: while the words do not say it, two things cannot be painted apart,
and while they cannot be painted apart, little asks the words to say it.
"""

from typing import Any

import torch
from torch.nn import functional

SEPARATORS = ("▁and", "▁over", ",")  # open a second thing, the background, the camera


class ClauseLoss(torch.nn.Module):
    """Two linear probes of a text encoder's output, trained with it and then thrown away.

    At every token one tells which clause it stands in, the other which words that clause holds.
    """

    def __init__(self, tokenizer: Any, width: int) -> None:
        super().__init__()
        separators = torch.tensor(tokenizer.convert_tokens_to_ids(list(SEPARATORS)))
        self.register_buffer("separators", separators, persistent=False)
        self.place = torch.nn.Linear(width, len(SEPARATORS) + 1)
        self.words = torch.nn.Linear(width, len(tokenizer))

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """Which clause every token (B, L) stands in: 0 and 1 things, 2 background, 3 camera."""
        opened = ids[..., None] == self.separators
        numbers = torch.arange(1, len(SEPARATORS) + 1, device=ids.device)
        return (opened * numbers).sum(dim=-1).cummax(dim=1).values

    def forward(self, embeds: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Loss of embeddings (B, L, width) of tokens (B, L), where the mask (B, L) is one."""
        real = mask.bool()
        places = self.places(ids)
        together = (places[:, :, None] == places[:, None, :]) & real[:, None, :]
        spelled = functional.one_hot(ids, self.words.out_features).float()
        held = (together.float() @ spelled).clamp(max=1.0)
        place = functional.cross_entropy(self.place(embeds[real]), places[real])
        words = functional.binary_cross_entropy_with_logits(self.words(embeds[real]), held[real])
        return place + self.words.out_features / 10 * words
