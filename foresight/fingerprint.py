"""Telling models apart: what a trace set and a policy remember of the model they belong to."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from foresight.blocks import find_blocks, find_transformers


def fingerprint(pipe: Any) -> dict[str, Any]:
    """What a policy must agree with: class, blocks, width and a hash of the weights.

    The hash covers name, shape and 64 evenly spaced values of every parameter, in float32. The
    width is that without adapters (LoRA), which are narrow.
    """
    transformers = list(find_transformers(pipe).values())
    blocks = find_blocks(transformers[0])
    digest = hashlib.sha256()
    for transformer in transformers:
        for name, parameter in sorted(transformer.named_parameters()):
            flat = parameter.detach().flatten()
            picks = torch.linspace(0, flat.numel() - 1, 64, dtype=torch.float64).long()
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(flat[picks.to(flat.device)].bfloat16().float().cpu().numpy().tobytes())
    parameters = blocks[0].module.named_parameters()
    widths = [p.shape[-1] for name, p in parameters if p.ndim == 2 and "lora_" not in name]
    return {
        "id": Path(str(getattr(pipe, "foresight_id", pipe.config.get("_name_or_path", "")))).name,
        "transformer": type(transformers[0]).__name__,
        "num_blocks": len(blocks),
        "block_names": [block.name for block in blocks],
        "block_kinds": [block.kind for block in blocks],
        "width": min(widths),
        "weights_hash": digest.hexdigest()[:16],
    }
