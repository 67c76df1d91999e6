"""Writes the keys that `trl COMMAND` and `accelerate launch` know, with their types and defaults.

The keys come from the parsers of the installed packages, so they are what a user can write. A test
(src/cli/trl.rs) compares them with what Collimate makes of each.

    python scripts/trl_keys.py > tests/fixtures/trl_keys.json
"""

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import types
import typing

COMMANDS = ["sft", "dpo", "kto", "reward", "grpo", "rloo"]


def type_name(kind):
    """A type in Python's spelling, without the modules of the classes."""
    arguments = typing.get_args(kind)
    if not arguments:
        return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
    names = [repr(a) if not isinstance(a, type) and not typing.get_args(a) else type_name(a) for a in arguments]
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " | ".join(names)
    return f"{typing.get_origin(kind).__name__}[{', '.join(names)}]"


def keys_of(dataclass):
    """The keys of a dataclass: (name, type, default)."""
    for field in dataclasses.fields(dataclass):
        default = field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = None if made is dataclasses.MISSING else made()
        default = getattr(default, "value", default)
        yield field.name, type_name(field.type), default


def script_keys():
    """The keys that every command has beside its trainer's."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    return {key[0] for part in (ScriptArguments, ModelConfig, DatasetMixtureConfig) for key in keys_of(part)}


def launcher_keys():
    """The flags of `accelerate launch` that take a value or switch something."""
    from accelerate.commands.launch import launch_command_parser

    for action in launch_command_parser()._actions:
        names = [name[2:] for name in action.option_strings if name.startswith("--")]
        if not names or isinstance(action, argparse._HelpAction) or action.dest == "config_file":
            continue
        kind = getattr(action.type, "__name__", "str") if action.nargs != 0 else "bool"
        for name in {name.replace("-", "_") for name in names}:
            yield name, kind, action.default


def main():
    from trl.experimental.online_dpo import OnlineDPOConfig

    keys = {}
    for command in COMMANDS:
        parser = importlib.import_module(f"trl.scripts.{command}").make_parser()
        keys[command] = [key for dataclass in parser.dataclass_types for key in keys_of(dataclass)]
    online = list(keys_of(OnlineDPOConfig))
    beside = script_keys() - {name for name, _, _ in online}
    keys["online-dpo"] = online + [key for key in keys["dpo"] if key[0] in beside]

    def same_everywhere(key):
        return all(key in keys[command] for command in keys)

    shared = [key for key in keys["sft"] if same_everywhere(key)]
    lists = {"every command": shared}
    for command, all_keys in keys.items():
        lists[command] = [key for key in all_keys if key not in shared]
    lists["launcher"] = sorted(launcher_keys())
    packages = ["trl", "transformers", "accelerate"]
    versions = {package: importlib.metadata.version(package) for package in packages}
    print("{")
    print(f' "made from": {json.dumps(versions)},')
    for at, (name, rows) in enumerate(lists.items()):
        lines = ",\n".join("  " + json.dumps(row) for row in rows)
        end = "" if at == len(lists) - 1 else ","
        print(f' "{name}": [\n{lines}\n ]{end}')
    print("}")


if __name__ == "__main__":
    main()
