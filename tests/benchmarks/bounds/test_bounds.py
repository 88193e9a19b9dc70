import math

import pytest
import torch

from benchmarks.bounds import run


@pytest.mark.parametrize("name", ["average (KL)", "every item", "mixture"])
def test_every_shape_keeps_its_bound(name):
    torch.manual_seed(0)
    ref, fused = torch.randn(20, 40).log_softmax(-1), (2 * torch.randn(20, 40)).log_softmax(-1)
    for radius in run.RADII[name]:
        logp = run.SHAPES[name](ref, fused, radius)
        torch.testing.assert_close(logp.logsumexp(-1), torch.zeros(20, dtype=torch.float64), atol=1e-6, rtol=0)
        spent = (logp.exp() * (logp - ref)).sum(-1) if name == "average (KL)" else (ref - logp).amax(-1)
        assert (spent <= radius + 1e-6).all()
        assert (spent > 0.5 * radius).any()  # the bound is used
    wide = run.SHAPES[name](ref, fused, 40.0)
    torch.testing.assert_close(wide, fused.double(), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(300)  # 80 s on a busy machine
def test_quick_run_prints_every_point(capsys):
    run.main(["--quick"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "|--" not in line][1:]
    assert len(rows) == 2 + sum(len(radii) for radii in run.RADII.values())
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    losses = {(row[1], row[2]): float(row[5]) for row in cells}
    for name in ("every item", "mixture"):
        for radius in run.RADII[name]:
            assert losses[name, f"{radius:g}"] <= radius + 0.006  # printed with two digits
    assert math.isfinite(losses["unbounded", "–"])
