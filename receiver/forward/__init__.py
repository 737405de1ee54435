"""OpenIM's other callbacks, passed on to the business server."""
