"""What a ranking worker loads: libraries of language models would be half of its start and 120 MB a process."""

import subprocess
import sys

HEAVY = ("transformers", "peft", "sklearn", "scipy", "matplotlib")


def test_a_ranking_worker_loads_no_language_model_libraries() -> None:
    code = f"import sys, workers.roles.ranking.worker; print(*(name for name in {HEAVY} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
