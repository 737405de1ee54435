"""One root for every error of ours; the type says whether trying again can help."""


class PresenceError(Exception):
    """The root. Its text is one line for a person that says what to do."""


class SettingsError(PresenceError):
    """A setting is wrong. Trying again cannot help; the text names the variable."""


class Unavailable(PresenceError):
    """A server or disk is not available at the moment. Trying again later can help."""
