"""How every command starts: Hydra config, clear errors, exit codes.

Exit codes: 0 done, 1 done but something in it failed, 2 bad input or configuration, 130 interrupted.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from telemetry.errors import InputError

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
T = TypeVar("T")


def group_choices(group: str) -> list[str]:
    """Names of the options of a config group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _known_keys(config: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    if isinstance(config, Mapping):
        for key, value in config.items():
            keys.append(f"{prefix}{key}")
            keys.extend(_known_keys(value, f"{prefix}{key}."))
    return keys


def _explain(config_name: str, overrides: Sequence[str], error: Exception) -> str:
    """One message that names the wrong key or value and the choices."""
    groups = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())
    pairs = [(override, *match.groups()) for override in overrides if (match := re.match(r"^[+~]*([\w/.@]+)=(.*)$", override))]
    for _, key, value in pairs:
        chosen = {name.strip() for name in value.strip("[]").split(",")}
        if key in groups and not chosen <= {*group_choices(key), "null", ""}:
            return f"{key}={value}: no such choice; allowed: {', '.join(group_choices(key))}"
    for override, key, _ in pairs:
        if key in groups or key.startswith("hydra"):
            continue
        known = _known_keys(OmegaConf.to_container(_compose(config_name, [o for o in overrides if o.split("=")[0] in groups])))
        if key not in known and not override.startswith("+"):
            parent = key.rpartition(".")[0]
            siblings = [k for k in known if k.rpartition(".")[0] == parent]
            near = difflib.get_close_matches(key, known, n=3) or siblings or [k for k in known if "." not in k]
            return f"{key}: no such key; near: {', '.join(near[:12])}; groups: {', '.join(groups)}; see --help"
    return str(error).splitlines()[0]


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return compose(config_name=config_name, overrides=list(overrides))


def compose_config(config_name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``conf/<config_name>.yaml`` with overrides outside a command (tests, notebooks).

    Raises:
        InputError: a wrong key or value, with the choices.
    """
    try:
        return _compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_explain(config_name, overrides, error), where=f"config '{config_name}'") from error


def build(kind: type[T], values: Any, where: str) -> T:
    """A frozen dataclass from a config node; nested dataclasses and tuples follow the annotations.

    Raises:
        InputError: unknown or missing key, or a value of another type.
    """
    plain = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values
    if not isinstance(plain, Mapping):
        raise InputError(f"{plain!r} is no mapping", where=where)
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(map(str, plain)) - set(names))
    if unknown:
        raise InputError(f"unknown key {', '.join(unknown)}", where=where, allowed=", ".join(names))
    try:
        return kind(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in plain.items()})
    except TypeError as error:
        raise InputError(str(error), where=where) from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where)  # type: ignore[arg-type]
    if isinstance(value, list):
        inner = next((a for a in get_args(hint) if a is not Ellipsis), None)
        return tuple(_convert(inner, item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise InputError(f"{value!r}", where=where, allowed=f"a value of type {hint.__name__}")
    return value


def quiet_libraries() -> None:
    """Third-party progress chatter off; our own lines and warnings stay."""
    for name in ("cmdstanpy", "prophet", "prophet.plot", "alembic", "mlflow", "lightgbm", "matplotlib", "git"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def reach_registry(cfg: DictConfig) -> None:
    """Set what MLflow, boto3 and libpq read from the environment, where the config group ``registry`` names a server's credentials.

    Raises:
        InputError: unknown key, or a file that cannot be read.
    """
    place = cfg.get("registry")
    if place is None or not place.get("access"):
        return
    from registry.access import Access, variables

    os.environ.update(variables(build(Access, place.access, "registry.access"), str(place.tracking_uri)))


def hydra_command(config_name: str) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Make ``fn(cfg) -> exit code`` a command: ``--help``, overrides, one-line errors."""

    def decorate(fn: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        def main() -> None:
            arguments = sys.argv[1:]
            if not any(a in ("--help", "-h", "--hydra-help") for a in arguments):
                try:
                    compose_config(config_name, [a for a in arguments if not a.startswith("-")])
                except InputError as error:
                    raise SystemExit(_fail(error)) from None
            code: list[int] = [0]

            def task(cfg: DictConfig) -> None:
                quiet_libraries()
                try:
                    reach_registry(cfg)
                    code[0] = fn(cfg) or 0
                except InputError as error:
                    code[0] = _fail(error)
                except KeyboardInterrupt:
                    print("interrupted; the last good state is kept, the same command resumes", file=sys.stderr)
                    code[0] = 130

            GlobalHydra.instance().clear()
            hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)(task)()
            raise SystemExit(code[0])

        main.__doc__ = fn.__doc__
        return main

    return decorate


def name_sources(groups: Sequence[str] = ("cluster", "grid")) -> None:
    """Let ``cluster=`` and ``grid=`` take files, while ``conf/`` has groups of these names: on the command line they set ``*.source``."""
    for index, argument in enumerate(sys.argv[1:], start=1):
        key, equals, value = argument.partition("=")
        if key in groups and equals:
            sys.argv[index] = f"{key}.source={value}"


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
