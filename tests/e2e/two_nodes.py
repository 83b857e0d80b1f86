"""A Ray cluster of two nodes on this machine, and a tracker on it that is killed again and again.

`python -m tests.e2e.two_nodes STORE_URL RESTARTS` prints `restarted` with the tracker's node, `here` for the one that
has created it. Run by a test in a process of its own: the tests share another Ray instance.
"""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from callback.client import TrackerClient
from callback.config import TRACKER_NAMESPACE, TrackerConfig
from deployments.artifacts import ArtifactStore
from serve_app.service import TrackerPictures

NAME = "followed"
TIMEOUT_S = 150.0
"""Below what the test waits: whatever happens, the cluster is ended."""


async def follow(store_url: str, restarts: int, folder: Path) -> None:
    client = TrackerClient(TrackerConfig(store_url), TrackerPictures(ArtifactStore(str(folder)), None), name=NAME)
    await client.start()
    here = ray.get_runtime_context().get_node_id()
    for _ in range(restarts):
        pid = (await client._connection._identity()).pid
        os.kill(pid, signal.SIGKILL)
        while (await client._connection._identity()).pid == pid:  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.1)
        tracker = ray.get_actor(NAME, namespace=TRACKER_NAMESPACE)
        # Ray's own interface for this wants the dashboard.
        node = ray._private.state.actors(tracker._actor_id.hex())["Address"]["NodeID"]
        sys.stdout.write(f"restarted {'here' if node == here else node}\n")
    await client.close()


def main() -> None:
    store_url, restarts = sys.argv[1], int(sys.argv[2])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, namespace=TRACKER_NAMESPACE, log_to_driver=False)
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(asyncio.wait_for(follow(store_url, restarts, Path(folder)), TIMEOUT_S))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
