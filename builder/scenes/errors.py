"""What can go wrong with scenes."""

from builder.errors import BuilderError


class SceneError(BuilderError):
    """A scene or a set of scenes cannot be made as asked."""
