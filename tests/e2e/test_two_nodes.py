"""Where Ray restarts a tracker on a cluster of more than one node."""

import subprocess
import sys
from pathlib import Path

RESTARTS = 5
"""Ray takes either node: that it took the first one so often by chance happens once in thirty runs."""


def test_a_tracker_whose_store_is_on_its_nodes_disk_is_restarted_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.e2e.two_nodes", f"sqlite:///{tmp_path}/jobs.db", str(RESTARTS)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, timeout=180, check=True)
    # Ray prints there too.
    told = [line for line in done.stdout.decode().splitlines() if line.startswith("restarted ")]
    assert told == ["restarted here"] * RESTARTS
