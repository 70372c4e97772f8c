"""What a user got wrong, said in one sentence."""


class InputError(ValueError):
    """Bad input: the message is one sentence that says what was wanted and what came."""
