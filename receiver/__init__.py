"""Takes OpenIM's callbacks: socket -> callback -> journal -> relay -> queue."""
