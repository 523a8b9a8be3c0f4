"""The one exception for a mistake that the user can mend."""


class InputError(ValueError):
    """A file, key or value that the user gave is wrong.

    The message is one line, whatever stood in the file: it names the file, key or value and says what to do. The
    command line prints it and exits with 2; every other exception is a fault of the program.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.replace("\0", "?").split()))
