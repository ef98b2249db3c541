"""User code by name: `path/file.py:Name` and `package.module:Name`, with `?key=value&…`.

Models, data sets, methods, criteria and whatever else can be extended take such targets.
Everything that can go wrong in the user's own code (it does not import, it raises, it takes other
arguments) becomes one line that names the place.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import operator
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from shoal.errors import (
    ConfigError,
    NameNotFoundError,
    ShoalError,
    nearest_names,
    summary,
    unknown_name,
)
from shoal.user_paths import user_path

Around = Callable[[Callable[[], Any]], Any]
"""Calls its argument; it may prepare something and call again if that fails."""

_WORDS = {"null": None, "~": None, "": None, "true": True, "false": False}
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class _Yaml(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as in version 1.2; in PyYAML's 1.1 it is a text."""


_YAML_FLOAT = "tag:yaml.org,2002:float"
_Yaml.yaml_implicit_resolvers = {
    sign: [known for known in each if known[0] != _YAML_FLOAT]
    for sign, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    _YAML_FLOAT,
    re.compile(rf"(?:{_FLOAT.pattern})\Z|[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds, plain values only; raises `yaml.YAMLError`."""
    return yaml.load(text, _Yaml)


def parse_target(text: str) -> tuple[str, dict[str, Any]]:
    """Split `target?key=value&…` into the target and its keyword arguments."""
    target, _, keywords = text.strip().partition("?")
    return target.strip(), parse_keywords(keywords)


def parse_keywords(text: str) -> dict[str, Any]:
    """Read `key=value&key=value`; each value is a scalar of YAML 1.2.

    `true`, `false`, `null`, `10`, `1e-3` have their type, anything else is a string. Quotes make a
    string of anything (`name='10'`), and brackets a list (`layers=[1, 1]`).
    """
    keywords: dict[str, Any] = {}
    for part in text.split("&") if text.strip() else []:
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"'{part}' is not key=value: write arguments as '?key=value&key=value'"
            )
        if key in keywords:
            raise ConfigError(f"the argument '{key}' is given twice in '?{text}': keep one of them")
        keywords[key] = _parse_value(key, value.strip())
    return keywords


def format_target(target: str, keywords: Mapping[str, Any]) -> str:
    """Return the text that `parse_target` reads back as `target` and `keywords`.

    Values are None, booleans, numbers, strings without "&", or lists of these.
    """
    parts = [f"{key}={_format_value(key, value)}" for key, value in keywords.items()]
    return target + ("?" + "&".join(parts) if parts else "")


def _format_value(key: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = value == value.strip() and value[:1] not in ("'", '"', "[", "{")
        if plain and _parse_value(key, value) == value:
            return value
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML


def _parse_value(key: str, text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    # Only what is visibly YAML goes to the YAML reader: version 1.1, which it implements, would
    # take `no` for false and `1:30` for ninety.
    if text[0] in "'\"[{":
        try:
            return parse_yaml(text)
        except yaml.YAMLError:
            raise ConfigError(
                f"the value of '{key}' cannot be read: {text} (is a quote or a bracket not closed?)"
            ) from None
    return text


def import_target(target: str, around: Around = operator.call) -> Any:
    """Return the callable that `path/file.py:name` or `package.module:name` names.

    The file's folder, or the current folder for a module, joins the end of `sys.path`, so that
    user code finds the modules beside it; installed packages keep the precedence. The name may be
    dotted (`Nets.small`).
    """
    source, _, name = target.rpartition(":")
    if not source or not name:
        raise ConfigError(
            f"'{target}' does not name a factory: "
            "write it as path/file.py:factory or package.module:factory"
        )
    module = found = _import(source, around)
    for part in name.split("."):
        if not hasattr(found, part):
            unknown = unknown_name("factory", name, _callables(module))
            raise NameNotFoundError(f"{unknown} (looked in {source})")
        found = getattr(found, part)
    if not callable(found):
        kind = type(found).__name__
        raise ConfigError(
            f"'{name}' in {source} cannot be called, its type is {kind}: name a function or a class"
        )
    return found


def accepts(factory: Callable[..., Any], keyword: str) -> bool:
    """Return whether `factory` has a parameter of that name; a `**kwargs` tells nothing."""
    return any(p.name == keyword and p.kind in _BY_NAME for p in _parameters(factory) or ())


def call_target(
    factory: Callable[..., Any],
    keywords: Mapping[str, Any],
    target: str,
    around: Around = operator.call,
) -> Any:
    """Return `factory(**keywords)`; whatever goes wrong in it becomes one line about `target`."""
    _check_arguments(factory, keywords, target)
    try:
        return around(lambda: factory(**keywords))
    except ShoalError:
        raise
    except (Exception, SystemExit) as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and refused and refused[1] in keywords:
            # A factory with **kwargs passes them on, so only the call itself finds the stranger.
            raise ConfigError(
                f"{target} does not take '{refused[1]}': remove it or correct its spelling"
            ) from error
        raise ConfigError(f"{target} failed: {summary(error)}") from error


def is_path(source: str) -> bool:
    """Whether the part of a target before the colon is a file, not a module."""
    return source.endswith(".py") or "/" in source or "\\" in source


def _import(source: str, around: Around) -> ModuleType:
    """Import user code, turning whatever it raises into one line."""
    load = _loader_of_file(source) if is_path(source) else _loader_of_module(source)
    try:
        module: ModuleType = around(load)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{source}.".startswith(f"{missing}."):
            raise ConfigError(
                f"there is no module '{missing}' to import {source} from: "
                "install it, run from the folder that holds it, or give the path of its file"
            ) from error
        raise ConfigError(f"{source} cannot be imported: {summary(error)}") from error
    return module


def _loader_of_file(source: str) -> Callable[[], ModuleType]:
    path = user_path(source).resolve()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"the file '{source}' {what}: give the path of a Python file")
    if path.suffix != ".py":
        raise ConfigError(
            f"'{source}' is not a Python file: name a .py file that has the factory "
            "(a pickled model is never loaded; pass weights as a checkpoint)"
        )
    _extend_path(path.parent)
    if _is_importable_as(path.stem, path):
        # Under its own name a worker process that starts afresh can import it again.
        return lambda: importlib.import_module(path.stem)
    return lambda: _execute(path)


def _loader_of_module(name: str) -> Callable[[], ModuleType]:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(
            f"'{name}' is neither a Python file nor a module: "
            "write path/file.py:factory or package.module:factory"
        )
    _extend_path(Path.cwd())
    return lambda: importlib.import_module(name)


def _extend_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _is_importable_as(name: str, path: Path) -> bool:
    """Whether `import name` would give the file at `path`, not a namesake."""
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path


def _execute(path: Path) -> ModuleType:
    """Execute a file as a module under a name that no other module has."""
    name = f"shoal_user_{re.sub(r'[^0-9A-Za-z]', '_', str(path))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _callables(module: ModuleType) -> list[str]:
    """Return the public callables of a module, its own before the ones it imported."""
    names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    own = [n for n in names if getattr(vars(module)[n], "__module__", None) == module.__name__]
    return own or names


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Return what a factory takes; None for some C functions, which do not say."""
    try:
        return list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return None


def _check_arguments(factory: Callable[..., Any], keywords: Mapping[str, Any], target: str) -> None:
    """Raise `ConfigError` for an unknown or a missing argument, before anything is built."""
    parameters = _parameters(factory)
    if parameters is None:
        return
    known = [p.name for p in parameters if p.kind in _BY_NAME]
    unknown = [key for key in keywords if key not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        hint = nearest_names("argument", unknown[0], known)
        raise ConfigError(f"{target} does not take '{unknown[0]}': {hint}")
    for p in parameters:
        required = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if required and p.name not in keywords:
            raise ConfigError(
                f"{target} needs the argument '{p.name}': add '?{p.name}=…' after its name"
            )
