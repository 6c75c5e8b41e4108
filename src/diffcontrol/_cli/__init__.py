"""The command line: `diffcontrol fit | tune | record | evaluate | check | doctor`.

Nothing heavy is imported before it is known what is to be done. Each command is a module with a
dataclass of options, whose field docstrings are its `--help`, and a function that does the work.
"""

import sys
from collections.abc import Sequence

_HELP = """usage: diffcontrol COMMAND [OPTIONS]

Solve optimal control problems and learn controllers from demonstrations.

commands:
  fit SYSTEM      learn a controller from demonstrations, into a run folder
  tune SYSTEM     improve a controller by what it achieves in closed loop
  evaluate RUN    drive a plant with a learned controller and draw what it does
  record PLANT    drive a plant with an expert and write demonstrations
  check PROBLEM   compare the gradients of your own problem with finite differences
  doctor          say what this installation runs on

`diffcontrol COMMAND --help` lists the options of a command.
Start with: diffcontrol fit pendulum --out runs/first
"""

_COMMANDS = ("fit", "record", "evaluate", "check", "tune", "doctor")
_RESUMABLE = ("fit", "tune")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 done; 1 a check that failed; 2 something that the user can put right,
        said in one sentence on standard error; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"diffcontrol {version('diffcontrol')}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        return _say(f"There is no command `{command}`; choose one of {', '.join(_COMMANDS)}.")

    from .errors import UserError

    try:
        return _run(command, rest)
    except UserError as problem:
        return _say(str(problem))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def _run(command: str, arguments: list[str]) -> int:
    import functools
    import importlib

    from .errors import UserError

    try:
        import tyro

        module = importlib.import_module(f"{__name__}.{command}")
    except ModuleNotFoundError as problem:
        if str(problem.name).startswith("diffcontrol"):
            raise
        raise UserError(
            f"The command line needs `{problem.name}`; run `pip install 'diffcontrol[cli]'`."
        ) from problem
    parse = functools.partial(
        tyro.cli, module.Options, prog=f"diffcontrol {command}", args=arguments
    )
    options = parse()
    if command in _RESUMABLE and (begun := module.begun(options)) is not None:
        # What is left out stands for the settings of the run that is continued, so that whatever
        # differs from them was asked for.
        options = parse(default=begun)
    _prepare_jax()
    return module.run(options) or 0


def _prepare_jax() -> None:
    """Double precision, and compiled programs kept between runs. The library sets neither."""
    import os
    from pathlib import Path

    import jax

    jax.config.update("jax_enable_x64", True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "diffcontrol" / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _say(sentence: str) -> int:
    print(f"diffcontrol: {' '.join(sentence.split())}", file=sys.stderr)
    return 2
