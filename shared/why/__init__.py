"""Why a user is shown online or offline: what is remembered, and what OpenIM itself says."""
