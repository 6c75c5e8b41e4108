"""What the user can put right."""


class UserError(Exception):
    """One sentence that says what is wrong and what to do. Shown as it is; exit code 2."""
