"""OpenIM's own files, of any release: which callbacks they enable, and where these go.

Sources in open-im-server: config/webhooks.yml and pkg/common/config/load_config.go (3.7 and later, by viper), and
config/config.yaml (before). Pure: texts in, what OpenIM makes of them out.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

#: 2.1 to 2.3.3, 3.0 to 3.6, 3.7 and later.
Form = Literal["2", "3.0", "3.7"]
KINDS = ("online", "offline", "kick-off")

#: For each form: the file, the path to its section in the file, the name of the URL, and those of the three callbacks.
FILES: dict[Form, str] = {"2": "config.yaml", "3.0": "config.yaml", "3.7": "webhooks.yml"}
_PATHS: dict[Form, tuple[str, ...]] = {"2": ("callback",), "3.0": ("callback",), "3.7": ()}
_URLS: dict[Form, str] = {"2": "callbackUrl", "3.0": "url", "3.7": "url"}
NAMES: dict[Form, tuple[str, ...]] = {
    "2": ("callbackUserOnline", "callbackUserOffline", "callbackUserKickOff"),
    "3.0": ("userOnline", "userOffline", "userKickOff"),
    "3.7": ("afterUserOnline", "afterUserOffline", "afterUserKickOff"),
}
_TIMEOUTS: dict[Form, str] = {"2": "callbackTimeOut", "3.0": "timeout", "3.7": "timeout"}
RELEASES: dict[Form, str] = {"2": "2.1 to 2.3.3", "3.0": "3.0 to 3.6", "3.7": "3.7 and later"}

#: viper lets these variables override what a file has, and only that.
ENVIRONMENT = "IMENV_WEBHOOKS_"
_DEEPEST = 4


class Text(str):
    """A scalar as it is written. is_quoted: to OpenIM, too, it is then text, and not a number or a switch."""

    is_quoted: bool = False

    @classmethod
    def quoted(cls, text: str) -> "Text":
        made = cls(text)
        made.is_quoted = True
        return made


class _Loader(yaml.SafeLoader):
    """Every scalar is text, since each release reads `yes` in its own way; a repeated key is an error."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.MarkedYAMLError(problem=f"the key {twice} is repeated", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.ScalarNode) -> Text:
        text = Text(self.construct_scalar(node))
        text.is_quoted = node.style is not None
        return text


for _kind in ("str", "int", "float", "bool", "null"):  # these may be written with a tag as well
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_text)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Files that one OpenIM reads together: a directory, or one ConfigMap. where: its name for people.

    is_contained: the files show that OpenIM runs in containers.
    """

    where: str
    files: Mapping[str, bytes]
    is_contained: bool = False


@dataclass(frozen=True, slots=True)
class Callback:
    """One callback's settings as text; None if there are none. is_section: they are a mapping, or nothing at all."""

    enable: Text | None = None
    timeout: Text | None = None
    is_section: bool = True


@dataclass(frozen=True, slots=True)
class Config:
    """What one OpenIM reads. ignored: variables that name no key of the file. overridden: those that override a key."""

    where: str
    form: Form
    url: str
    callbacks: Mapping[str, Callback]
    is_contained: bool = False
    overridden: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """misplaced: sentences about settings that no release reads at their place. unreadable: files, and why. release:
    as one of the files says, "" if none does. hints: what the other files tell, see `_hints`.
    """

    configs: tuple[Config, ...] = ()
    misplaced: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    release: str = ""
    hints: frozenset[str] = field(default_factory=frozenset)


def read(files: Mapping[str, bytes], environment: Mapping[str, str]) -> Found:
    """files: by name, as they are in the directory; `version` is that of OpenIM's source, if it was found.
    environment: variables of OpenIM's processes, as far as they are known.
    """
    configs: list[Config] = []
    misplaced: list[str] = []
    unreadable: list[tuple[str, str]] = []
    hints: set[str] = set()
    given = {**environment}
    bundles, is_contained = [], False
    for name, text in files.items():
        documents, error = parse(text)
        if error and name in FILES.values():
            unreadable.append((name, error))
        for document in documents:
            given.update(_variables(document))
            if isinstance(document, dict):
                is_contained |= _runs_containers(document)
                if document.get("kind") == "ConfigMap":
                    bundles.append(_config_map(name, document))
    for bundle in (Bundle("", files, is_contained), *bundles):
        hints |= _hints(bundle.files)
        for name in dict.fromkeys(FILES.values()):
            documents, error = parse(bundle.files.get(name, b""))
            if error and bundle.where:
                unreadable.append((f"{bundle.where}{name}", error))
            if name == "webhooks.yml" and name in bundle.files and not error:
                documents = [document if document not in (None, "") else {} for document in documents] or [{}]
                if not isinstance(documents[0], dict):
                    unreadable.append((f"{bundle.where}{name}", "it has no names with values"))
            for document in documents[:1]:  # OpenIM reads the first
                found, wrong = _of_file(bundle, name, document, given)
                configs += found
                misplaced += wrong
    release = files.get("version", b"").decode(errors="replace").strip()
    return Found(tuple(configs), tuple(misplaced), tuple(unreadable), release, frozenset(hints))


def parse(text: bytes) -> tuple[list[Any], str]:
    """The documents in it, and the error that ended the reading, or ""."""
    documents: list[Any] = []
    # OpenIM's parser takes a tab between words as a blank, and this one as an error; a tab that indents is an error.
    text = re.sub(rb"(?<=[^\s])[ \t]+", lambda blanks: blanks[0].replace(b"\t", b" "), text)
    try:
        documents.extend(yaml.load_all(text, _Loader))  # it is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        return documents, f"{line}{error.problem or error.context}"
    except (yaml.YAMLError, UnicodeError, ValueError, TypeError, RecursionError) as error:
        return documents, " ".join(str(error).split())
    return documents, ""


def _config_map(name: str, document: Mapping[str, Any]) -> Bundle:
    data = document.get("data")
    inner = {str(key): str(value).encode() for key, value in data.items()} if isinstance(data, dict) else {}
    metadata = document.get("metadata")
    title = str(metadata.get("name", "")) if isinstance(metadata, dict) else ""
    return Bundle(f"ConfigMap {title} in {name}: ", inner, is_contained=True)


def _runs_containers(document: Mapping[str, Any]) -> bool:
    """Whether it is a compose file that runs OpenIM itself, and not only the servers that OpenIM needs."""
    services = document.get("services")
    each = services.values() if isinstance(services, dict) else ()
    return any(isinstance(service, dict) and "openim-server" in str(service.get("image", "")) for service in each)


def _of_file(
    bundle: Bundle, name: str, document: Any, environment: Mapping[str, str]
) -> tuple[list[Config], list[str]]:
    where = f"{bundle.where}{name}"
    sections = list(_sections(document))
    right = [(form, section) for form, path, section in sections if (FILES[form], _PATHS[form]) == (name, path)]
    home = {form: f"OpenIM {RELEASES[form]} reads it in {FILES[form]} {_at(_PATHS[form])}" for form in FILES}
    wrong = [
        f"{where} has {NAMES[form][0]} {_at(path)}; {home[form]}"
        for form, path, _ in sections
        if (FILES[form], _PATHS[form]) != (name, path)
    ]
    if not sections and name == "webhooks.yml" and isinstance(document, dict):
        right = [("3.7", document)]
    return [_config(where, form, section, environment, bundle.is_contained) for form, section in right], wrong


def _at(path: tuple[str, ...]) -> str:
    return f"under {'.'.join(path)}:" if path else "at the top"


def _sections(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Form, tuple[str, ...], dict[str, Any]]]:
    """Each mapping that has one of the three callbacks, by the names of some release."""
    if not isinstance(tree, dict) or len(path) > _DEEPEST:
        return
    for form, names in NAMES.items():
        known = {str(key).lower() if form == "3.7" else key for key in tree}
        if known & {each.lower() if form == "3.7" else each for each in names}:
            yield form, path, tree
    for key, value in tree.items():
        yield from _sections(value, (*path, str(key)))


def _config(
    where: str, form: Form, section: Mapping[str, Any], environment: Mapping[str, str], is_contained: bool
) -> Config:
    values = _values(form, section)
    given = {
        name.removeprefix(ENVIRONMENT): (name, value)
        for name, value in environment.items()
        if form == "3.7" and name.startswith(ENVIRONMENT) and value
    }
    overridden = {key: given[key.upper()] for key in values if key.upper() in given}
    ours = {f"{name}_{end}".upper() for name in NAMES["3.7"] for end in ("enable", "timeout")} | {"URL"}
    ignored = [name for key, (name, _) in given.items() if key in ours and key not in map(str.upper, values)]
    values |= {key: Text.quoted(value) for key, (_, value) in overridden.items()}
    callbacks = {}
    for kind, name in zip(KINDS, NAMES[form], strict=True):
        key = _fold(form, name)
        enable, timeout = (values.get(f"{key}_{_fold(form, end)}") for end in ("enable", _TIMEOUTS[form]))
        callbacks[kind] = Callback(enable, timeout, is_section=not values.get(key))
    names = tuple(name for name, _ in overridden.values())
    url = values.get(_fold(form, _URLS[form])) or ""
    return Config(where, form, url, callbacks, is_contained, names, tuple(ignored))


def _values(form: Form, section: Mapping[str, Any]) -> dict[str, Text]:
    """The section as one mapping: `url`, `afteruseronline_enable`; viper does not tell capitals from small letters."""
    values: dict[str, Text] = {}
    for key, value in section.items():
        name = _fold(form, str(key))
        if isinstance(value, dict):
            values |= {f"{name}_{_fold(form, str(inner))}": _text(each) for inner, each in value.items()}
        else:
            values[name] = _text(value)
    return values


def _text(value: Any) -> Text:
    """The value as text. What is not a scalar becomes text that is never valid."""
    return value if isinstance(value, Text) else Text("[]")


def _fold(form: Form, name: str) -> str:
    return name.lower() if form == "3.7" else name


def _variables(tree: Any) -> dict[str, str]:
    """What compose files and deployments give to OpenIM's processes: as a mapping, NAME=value, or name and value."""
    found: dict[str, str] = {}
    seen: set[int] = set()

    def walk(node: Any) -> None:
        if id(node) in seen:  # anchors
            return
        if isinstance(node, dict):
            seen.add(id(node))
            if isinstance(node.get("name"), str) and isinstance(node.get("value"), str):
                found[node["name"]] = node["value"]
            for key, value in node.items():
                if isinstance(value, str):
                    found[str(key)] = value
                else:
                    walk(value)
        elif isinstance(node, list):
            seen.add(id(node))
            for each in node:
                if isinstance(each, str) and "=" in each:
                    name, _, value = each.partition("=")
                    found[name] = value
                else:
                    walk(each)

    walk(tree)
    return {name: value for name, value in found.items() if name.startswith(ENVIRONMENT)}


def _hints(files: Mapping[str, bytes]) -> set[str]:
    """etcd: services find each other by it, and newer releases may have their settings there. old 3.8: 3.8.0 or 3.8.1,
    whose share.yml knows no multiLogin.
    """
    hints = set()
    discovery, _ = parse(files.get("discovery.yml", b""))
    if discovery and isinstance(discovery[0], dict) and str(discovery[0].get("enable", "etcd")).lower() == "etcd":
        hints.add("etcd")
    share, _ = parse(files.get("share.yml", b""))
    if "discovery.yml" in files and share and isinstance(share[0], dict) and "multiLogin" not in share[0]:
        hints.add("old 3.8")
    return hints
