"""What can go wrong with scenes."""

from base.errors import OperatorError


class SceneError(OperatorError):
    """A scene or a set of scenes cannot be made as asked."""
