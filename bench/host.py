"""The process that owns a Ray instance for measuring: `python -m bench.host CONFIG RAY_FOLDER`.

`serve run` cannot be told to leave Ray's dashboard out, but it uses a Ray that runs already in its process.
"""

import sys

import ray
from ray.serve.scripts import run


def main() -> None:
    """Run Ray without its dashboard, its files in RAY_FOLDER, and `serve run CONFIG` on it until interrupted."""
    config, ray_folder = sys.argv[1:]
    ray.init(address="local", include_dashboard=False, namespace="serve", log_to_driver=False, _temp_dir=ray_folder)
    run.main(args=[config])


if __name__ == "__main__":
    main()
