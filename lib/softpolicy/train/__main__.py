"""The command line of a run: `python -m softpolicy.train --agent sac --help`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import pkgutil
import sys

import torch

from softpolicy import agents, runs
from softpolicy.settings import SIZES, sized
from softpolicy.train import train


def true_or_false(text: str) -> bool:
    """A switch on the command line."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"give True or False, not '{text}'")
    return text.lower() == "true"


def arguments(config_class, agent: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The command line, made from the signature of `train` and the settings of one agent."""
    parser = argparse.ArgumentParser(
        prog="python -m softpolicy.train",
        parents=[agent],
        allow_abbrev=False,
        description=inspect.getdoc(train),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", default="paper", choices=SIZES, help="preset of width and batch [paper]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch [1]")
    for name, p in inspect.signature(train, eval_str=True).parameters.items():
        flag = "--" + name.replace("_", "-")
        if name == "seeds":
            parser.add_argument(flag, type=int, nargs="+", required=True)
        elif name != "config":
            given = {"required": True} if p.default is p.empty else {"default": p.default, "help": f"[{p.default}]"}
            parser.add_argument(flag, type=p.annotation, **given)
    group = parser.add_argument_group(f"settings of {config_class.name}")
    for f in dataclasses.fields(config_class):
        kind = true_or_false if isinstance(f.default, bool) else type(f.default)
        group.add_argument(f"--{f.name.replace('_', '-')}", type=kind, help=f"{f.metadata['doc']} [{f.default}]")
    return parser


def main(argv=None) -> int:
    """Exit status: 0 complete, 75 stopped early (the same command goes on), 1 all seeds diverged, 2 cannot be done."""
    first = argparse.ArgumentParser(prog="python -m softpolicy.train", add_help=False)
    first.add_argument("--agent", required=True, help="a file of softpolicy/agents, e.g. sac")
    names = sorted(module.name for module in pkgutil.iter_modules(agents.__path__))
    if (sys.argv[1:] if argv is None else argv) in (["-h"], ["--help"]):
        print(f"{first.format_usage()}\nWith an agent, --help lists all arguments; agents: {', '.join(names)}")
        return 0
    agent = first.parse_known_args(argv)[0].agent
    if agent not in names:
        first.error(f"unknown agent '{agent}'; accepted are {', '.join(names)}")
    config_class = importlib.import_module(f"softpolicy.agents.{agent}").Config
    given = vars(arguments(config_class, first).parse_args(argv))
    del given["agent"]
    size, threads = given.pop("size"), given.pop("threads")
    overrides = {f.name: v for f in dataclasses.fields(config_class) if (v := given.pop(f.name)) is not None}
    if threads < 1:
        first.error(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    interrupted = False
    try:
        train(sized(config_class, size, **overrides), **given)
    except (ValueError, runs.RunError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True  # if the loop had begun, the checkpoint is written
    try:
        found = runs.manifest(given["out"])
    except runs.RunError:
        print("error: interrupted before the run began", file=sys.stderr)
        return 75
    print(f"{given['out']}: {found['status']} at step {found['step']} of {given['steps']}")
    if interrupted and found["status"] != "diverged" and found["step"] < given["steps"]:
        return 75
    return {"complete": 0, "stopped": 75}.get(found["status"], 1)


if __name__ == "__main__":
    sys.exit(main())
