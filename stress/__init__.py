"""The validators' kit: client, callback receiver and picture checks. It speaks HTTP only."""
