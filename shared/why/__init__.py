"""Why a user is shown online or offline: by what is remembered, and beside what OpenIM itself says."""
