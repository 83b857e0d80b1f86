"""The validators' kit under the paths that earlier suites were run by, and its checks as tests."""
