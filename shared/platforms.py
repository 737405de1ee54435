"""The platforms that OpenIM's clients log in from."""

#: Their names by OpenIM's numbers. Source: openimsdk/protocol, constant/platform.go.
PLATFORMS = {
    1: "IOS",
    2: "Android",
    3: "Windows",
    4: "OSX",
    5: "Web",
    6: "MiniWeb",
    7: "Linux",
    8: "APad",
    9: "IPad",
    10: "Admin",
}


def platform_name(platform_id: int) -> str:
    return PLATFORMS.get(platform_id, f"platform {platform_id}")
