"""OpenIM's REST interface, as far as presence needs it: who is online, as OpenIM itself knows it."""
