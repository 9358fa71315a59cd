"""The one program of all studies: flags to a study, the study to results, results to a report.

Bad input is one line on the standard error that names the flag, and status 2; nothing is written.
"""

import difflib
import importlib
import logging as standard_logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from absl import flags, logging

from sweeps.command.parsers import Switch
from sweeps.runtime import arithmetic, cluster, extension, journal, processes, session
from sweeps.runtime.store import Store, StoreError
from sweeps.study import Execution, Flag, Report, Study, UsageError, flags_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["as_a_program", "complete", "execute", "flag_values", "main", "main_is_guarded", "report", "run"]

_CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def _define(values: flags.FlagValues, name: str, spec: Flag, default: Any, text: str) -> None:
    if isinstance(spec.parser, Switch):
        flags.DEFINE_boolean(name, default, text, values, module_name=spec.group)
        return
    default = None if default is None else spec.parser.serialize(default)
    flags.DEFINE(spec.parser, name, default, text, values, serializer=spec.parser, module_name=spec.group)


def _own(study: type[Study]) -> dict[str, tuple[Flag, Any]]:
    """The flags of a study, those of its execution among them."""
    shared = flags_of(Execution).items()
    return flags_of(study) | {name: own for name, own in shared if own[0].group in study.execution_groups}


def flag_values(study: type[Study]) -> flags.FlagValues:
    """The flags that a study knows: its own, and those of logging."""
    # Another study in the same process may have flags of the same names, so these get a place of their own.
    values = flags.FlagValues()
    for module, known in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("absl"):
            for flag in known:
                values[flag.name] = flag
    for name, (spec, default) in _own(study).items():
        _define(values, name, spec, default, study.help_of(name, spec.help))
    return values


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """As the flags do it, with a flag's nearest name where there is none of this one."""
    try:
        return values(argv)
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        raise flags.UnrecognizedFlagError(error.flagname, suggestions=near) from error


def _read(study: type[Study], values: flags.FlagValues) -> tuple[Study, Execution]:
    """The study that the flags describe, or the results with --figures_only; and how it runs."""
    own = flags_of(study)
    present = {name: values[name].value for name in own if values[name].present}
    places: dict[str, Any] = {
        name: values[name].value for name in _own(study) if name not in own and values[name].value is not None
    }
    if "out" not in places:
        raise UsageError("--out: say where the results go")
    execution = Execution(**places)
    if not execution.figures_only:
        return study.make(**present), execution
    science = [name for name in present if own[name][0].decides or name == "protocol"]
    if stray := sorted(science + ["block"] * bool(execution.block) + ["refine"] * bool(execution.refine)):
        raise UsageError(f"--{stray[0]}: contradicts --figures_only, which takes everything from the results in --out")
    return study.from_science(session.open_results(execution.out).attributes, **present), execution


def report(study: Study, store: Store | None) -> Report:
    """What a study says of its results; of nothing, where it has no store.

    Raises:
      UsageError: the store is damaged or of another study.
    """
    module, _, function = study.reporter.partition(":")
    reporter = getattr(importlib.import_module(module), function)
    try:
        if store is None:
            return reporter(study, {})
        session.verify(study, store)
        return reporter(study, {variant: extension.read(store, variant.group) for variant in study.variants()})
    except UsageError:
        raise
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--out: {error}") from error


def _made_by(study: Study, out: Path) -> str:
    """What of a study's own choices its sessions made, that move last digits only: "kernel: native and xla"."""
    lines = journal.sessions(out)
    used = {name: list(dict.fromkeys(str(line[name]) for line in lines if name in line)) for name in study.recorded()}
    several = f"; {journal.SESSIONS} says which session used which"
    return "\n".join(
        f"{name}: {' and '.join(values)}{several if len(values) > 1 else ''}" for name, values in used.items() if values
    )


def complete(study: Study, execution: Execution) -> Report | None:
    """Does what is pending, and writes the report when nothing is any more; None while other shards are at work, and in
    all but the first of the processes that a coordinator brought together.

    Raises:
      UsageError: see `session.train` and `report`.
    """
    store = None
    if execution.figures_only:
        store = session.open_results(execution.out)
    elif study.axes():
        with cluster.joined(execution, study.name) as share:
            store = session.train(study, share)
        if execution.coordinator and share.shard_index > 0:
            return None
        if any(left.any() for left in session.pending(study, store).values()):
            logging.info("this shard is done; others are not, so no figures yet (--figures_only draws them)")
            return None
        study.finish(execution)
    else:
        session.check_folder(execution.out, marks=("config.json",))
        session.check_config(study, execution.out)
        session.configure_jax(study.arithmetic, "")
    logging.info("drawing figures")
    made = report(study, store)
    if made_by := _made_by(study, execution.out):
        made = made._replace(text=f"{made.text.rstrip()}\n{made_by}\n")
    from sweeps.reporting import write  # With plots and tables.

    configuration = session.configuration_of(study.science()) if store is None else store.attributes["configuration"]
    try:
        execution.out.mkdir(parents=True, exist_ok=True)
        write.write(made, execution.out, study.name, configuration)
        if store is None:
            session.write_config(study, execution.out)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {execution.out}: {error.strerror or error}") from error
    return made


def _one_line(name: str, error: Exception) -> str:
    where = {StoreError: "--out: ", UnicodeDecodeError: "--flagfile: "}.get(type(error), "")
    text = " ".join(str(error).split()).removeprefix("ERROR:: ")
    if isinstance(error, flags.IllegalFlagValueError) and isinstance(error.__context__, ValueError):
        # absl repeats the value in front of what the parser says of it.
        (flag,) = re.findall(r"^flag --(\w+)=", text) or [""]
        text = f"--{flag}: {error.__context__}"
    return f"{name}: {where}{text}"


def execute(study: type[Study], argv: Sequence[str]) -> None:
    """Parses the flags and runs.

    Args:
      study: the kind of study.
      argv: the words of the command line, the program first.

    Raises:
      SystemExit: after one line on the standard error, with status 2 when the input is bad, and 1 when tiles failed;
        with 0 after --help.
    """
    values = flag_values(study)
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & set(argv[1:]):
        groups = dict.fromkeys(spec.group for spec, _ in _own(study).values())
        document = sys.modules[study.__module__].__doc__ or ""
        introduction = flags.text_wrap(re.sub(r"(?<!\n)\n(?!\n)", " ", document.strip()))
        print(introduction + "\n" + "".join(values.module_help(group) for group in groups))
        raise SystemExit(0)
    try:
        left = _parse(values, argv)
        if len(left) > 1:
            raise UsageError(f"{left[1]!r} is not a flag; flags begin with --")
        flags.FLAGS.mark_as_parsed()  # The logging module looks there.
        arithmetic.check(os.environ.get("XLA_FLAGS", ""))
        made, execution = _read(study, values)
        complete(made, execution)
    except (flags.Error, UsageError, StoreError, UnicodeDecodeError) as error:
        print(_one_line(study.name, error), file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", 2)) from None


@contextmanager
def as_a_program() -> Iterator[None]:
    """What the launchers' own program sets in its environment and in JAX, and what was there before afterwards."""
    names = ("jax_enable_x64", *arithmetic.PINNED, *_CACHE)
    configuration = {name: jax.config.values[name] for name in names}
    new = processes.one_thread()
    old = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, value in configuration.items():
            jax.config.update(name, value)


def main_is_guarded() -> tuple[bool, str]:
    """Whether worker processes can import the script that was started without running it again; and its name."""
    started = sys.modules["__main__"]
    script = getattr(started, "__file__", None)
    if not script or getattr(started, "__spec__", None) is not None or not Path(script).is_file():
        return True, ""
    guard = re.search(r"^if __name__ == ['\"]__main__['\"]", Path(script).read_text(), re.MULTILINE)
    return guard is not None, Path(script).name


def run(study: type[Study], out: str | Path, **given: Any) -> "dict[str, xr.Dataset]":
    """A study from Python, as its command runs it: the same call goes on after an interruption.

    Args:
      study: the kind of study, one with a store.
      out: the output folder.
      given: its flags by name, as values or as their texts, where `module:function` may stand the function itself; and
        fields of `sweeps.study.Execution`.

    Returns:
      The results of every set-up by its name, in memory.

    Raises:
      UsageError: (a ValueError) see the flags.
      TileError: (a UsageError) some tiles could not be computed; the others are stored.
      SystemExit: SIGINT or SIGTERM came; what was done is stored.
    """
    own, places = flags_of(study), {name for name in _own(study) if name not in ("out", "figures_only")}
    if stray := sorted(set(given) - set(own) - places):
        raise UsageError(f"--{stray[0]}: {study.name} has no such flag")
    made = study.make(**{name: value for name, value in given.items() if name in own})
    where = {name: value for name, value in given.items() if name not in own}
    is_guarded, script = main_is_guarded()
    if not is_guarded:
        if where.get("num_processes", 0) > 1:
            raise UsageError(
                f'--num_processes: worker processes would run {script} again, which has no `if __name__ == "__main__":`'
            )
        where["num_processes"] = 1
    execution = Execution(out=Path(out), **where)
    with as_a_program():
        arithmetic.check(os.environ.get("XLA_FLAGS", ""))
        complete(made, execution)
        store = session.open_results(execution.out)
        return {variant.group: extension.read(store, variant.group) for variant in made.variants()}


def main(study: type[Study], argv: Sequence[str] | None = None) -> None:
    """The entry point of a study: `execute` on the command line, with its log on the standard error."""
    # XLA reads this once, before its first program; workers when they load NumPy.
    os.environ.update(processes.one_thread())
    logging.use_absl_handler()
    # Our own progress, and from everybody else only what is worth a warning.
    standard_logging.getLogger().setLevel(standard_logging.WARNING)
    logging.get_absl_logger().setLevel(standard_logging.INFO)
    try:
        try:
            execute(study, sys.argv if argv is None else argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has seen enough, as `head` does. The interpreter would complain when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{study.name}: interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
