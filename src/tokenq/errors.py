"""The one exception that the command line turns into a single line and exit code 2."""


class UserError(Exception):
    """Something that the user can mend.

    The message is one line and names what is wrong, where (file, row, field) and what would be
    accepted. Raise it before any model is loaded wherever the problem can be known by then.
    """
