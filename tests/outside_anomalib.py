"""Runs docs/outside/anomalib_maps.py in the environment of `make bench-peers` with weights from a file.

.venv-peers/bin/python tests/outside_anomalib.py WEIGHTS OPTIONS...
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import timm
import torch

from kdbench.backbone import read_state


def main() -> None:
    """Let timm take a ResNet-18 up to its third stage from the file, then run the script with the options."""
    weights, *options = sys.argv[1:]
    state, create = read_state(Path(weights)), timm.create_model

    def local(name: str, pretrained: bool = False, **more: Any) -> torch.nn.Module:
        made = create(name, pretrained=False, **more)
        if pretrained:
            lost = made.load_state_dict(state, strict=False).missing_keys
            assert all(key.startswith(("layer4", "fc")) for key in lost), lost
        return made

    timm.create_model = local
    script = Path(__file__).parents[1] / "docs/outside/anomalib_maps.py"
    sys.argv = [str(script), *options]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
