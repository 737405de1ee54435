"""Why a user is shown online or offline: what is remembered, how the rules read it, and what may still change it."""
