import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from models.compute.devices import ALONE, Place, device_named, place
from schemas.errors import FreshetError

SCRIPT = "tests.models.scorers.trained_together"


def weights(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping


def test_shares_are_a_partition():
    rows = np.arange(11)
    parts = [Place(torch.device("cpu"), rank, 4).share(rows) for rank in range(4)]
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()
    assert (ALONE.share(rows) == rows).all()
    assert len(Place(torch.device("cpu"), 3, 4).share(rows[:2])) == 0


def test_a_missing_device_is_named_in_the_error():
    assert place("cpu") == ALONE
    with pytest.raises(FreshetError, match="FRESHET_FIT_DEVICE='gpu' is no device"):
        device_named("gpu", "FRESHET_FIT_DEVICE")
    if not torch.cuda.is_available():
        assert place() == ALONE
        with pytest.raises(FreshetError, match="no GPU"):
            place("cuda:0")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_the_same_weights_as_one(tmp_path, processes):
    """After three epochs every process has the weights of a single-process run."""
    subprocess.run([sys.executable, "-m", SCRIPT, str(tmp_path)], check=True, timeout=300)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(processes),
         "-m", SCRIPT, str(tmp_path)], check=True, timeout=300, capture_output=True)
    alone, figures = weights(tmp_path / "0-of-1.safetensors")
    assert figures["epoch"] == "3.0000"
    for rank in range(processes):
        together, found = weights(tmp_path / f"{rank}-of-{processes}.safetensors")
        assert found["epoch"] == figures["epoch"]
        for name, weight in alone.items():
            torch.testing.assert_close(together[name], weight, atol=2e-3, rtol=2e-3)
