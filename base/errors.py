"""The root of the errors that end a command with one line."""


class OperatorError(Exception):
    """A fault that the user of the command can fix. Its text is one line: what came, what is allowed, what to do."""


class FetchError(OperatorError):
    """A package cannot be fetched, or is not the one that was expected."""
