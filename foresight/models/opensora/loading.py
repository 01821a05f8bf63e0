"""Loading weights strictly: what is missing, left over or misshapen is an error."""

from pathlib import Path
from typing import Any

from foresight.config import UserError


class StrictLoading:
    """Mixin for a diffusers `ModelMixin`, which by itself only warns of keys that do not fit."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Any:
        """Like `ModelMixin.from_pretrained`, from safetensors only and without tolerance.

        Raises:
            UserError: If a key is missing or left over, or pickled weights are asked for.
            RuntimeError: If a tensor's shape differs; the message names its key.
            OSError: If the folder holds no weights as safetensors.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise UserError("use_safetensors=False would unpickle; convert the weights first")
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **kwargs
        )
        faults = [
            f"{kind.removesuffix('_keys')} {sorted(map(str, info[kind]))}"
            for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if info[kind]
        ]
        if faults:
            raise UserError(
                f"the weights in {folder} are not those of a {cls.__name__} of this config: "
                f"{'; '.join(faults)}; load the checkpoint that its config.json belongs to"
            )
        return (model, info) if wants_info else model
