"""`diffcontrol fit`: learn a controller from demonstrations, into a run folder."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import jax
import optax
import tyro

from .. import DDP
from ..learning import (
    CheckpointError,
    ImitationLoss,
    SystemIdentificationLoss,
    evaluate,
    train,
    windows,
)
from . import fit_inputs, fit_report, progress, settings
from .errors import UserError
from .learner import choose_parameters, values
from .run_folder import (
    create,
    fingerprint,
    read_json,
    refuse_if_taken,
    save_controller,
    write_json,
)
from .versions import versions


@dataclasses.dataclass(frozen=True)
class Options:
    """Learn dynamics or cost of a controller from demonstrations.

    The learner has the structure of the expert's controller (horizon, cost, bounds), as the file
    of demonstrations states it, but wrong parameters. It plans from recorded states, and its
    parameters are moved until it does there what the expert did. Some of the runs are held out;
    the model with the lowest loss on them is kept. Double precision throughout.
    """

    system: Annotated[str, tyro.conf.Positional]
    """pendulum, complex_pendulum, cartpole, double_integrator, or module:attribute of your own
    ControlProblem (or of a function that takes nothing and returns one), whose arrays are
    learned."""
    data: Annotated[Path | None, tyro.conf.Positional] = None
    """File of demonstrations (.npz, arrays `states` (N, L+1, n) and `controls` (N, L, m)); for
    pendulum and cartpole, by default, the one that comes with the package (the cartpole's
    from MuJoCo)."""
    out: Path = Path("run")
    """The run folder to write. It must not exist, unless --resume."""
    resume: bool = False
    """Continue the fit in --out from its last checkpoint; it ends in the same bits as if it had
    never been interrupted. Starts it if it had not begun."""
    learn: Literal["dynamics", "cost", "both"] = "dynamics"
    """Which part of the problem has unknown parameters."""
    by: Literal["imitation", "system-identification"] = "imitation"
    """Whether to compare the controller's plans with the expert's controls, or the model's next
    states with the recorded ones."""
    start: tuple[str, ...] = ()
    """Where parameters start, as name=number, such as gravity=15 mass=3 length=0.5; others start
    from the papers' values, and weights of an unknown cost from 0.5."""
    raw: bool = False
    """Learn positive parameters as they are, not through their logarithms."""
    epochs: int = 20
    """Passes over the training windows."""
    windows: int = 256
    """Training windows, drawn from all recorded steps of the training runs."""
    validation_windows: int = 128
    """The same for the runs that select the best epoch."""
    batch_size: int = 32
    """Windows a step."""
    learning_rate: float = 0.05
    """Of Adam; falls to zero along a cosine."""
    steps: int = 1
    """How many stages of a plan are compared: 1 for closed-loop recordings, the length of the
    runs for recorded plans."""
    states_weight: float = 1.0
    """Of the difference between planned and recorded next states, beside that of the controls, in
    training; 0 compares controls only, as validation and the held-out loss always do."""
    clip: float = 1.0
    """The longest gradient that one window may contribute."""
    max_iterations: int = 50
    """Of the solver in training; windows that need more are left out until they need fewer."""
    restart_every: int = 1
    """Epochs after which plans start again from the recorded controls instead of the last plan."""
    seed: int = 0
    """Of the division into training, validation and test runs, and of the order of windows."""
    checkpoint_every: float = 5.0
    """Seconds between checkpoints."""
    quick: bool = False
    """Far less work, to see whether everything runs: 2 epochs of 64 windows."""


def begun(options: Options) -> Options | None:
    """The settings of the fit that is to be continued, or None if a new one begins.

    Raises:
        UserError: if the folder holds something else.
    """
    return settings.begun(options, paths=("data",))


def run(options: Options) -> int:
    """Fit, write the run folder, and name what was drawn.

    Raises:
        UserError: for whatever the user can put right.
    """
    earlier = begun(options)
    if earlier is None:
        refuse_if_taken(options.out)
    else:
        settings.check_same(options, earlier)
    try:
        _fit(options, earlier is not None)
    except KeyboardInterrupt:
        if not (options.out / "config.json").exists():
            raise
        return settings.interrupted("fit", options)
    return 0


def _fit(options: Options, continues: bool) -> None:
    fit_inputs.check_numbers(options)
    path = fit_inputs.data_path(options.system, options.data)
    demonstrations = fit_inputs.load(path)
    description = fit_inputs.describe(options.system, demonstrations)
    problem = fit_inputs.learner(options, description)
    fit_inputs.check_sizes(problem, demonstrations, path)
    epochs, most = (2, 64) if options.quick else (options.epochs, options.windows)
    try:
        training_runs, validation_runs, test_runs = demonstrations.split(seed=options.seed)
        # All windows compare equally many stages: a later step of a recorded plan was not planned
        # with the full horizon, so that planning from there misses it also with true parameters.
        cut = lambda runs, most: windows(
            runs, problem.horizon, steps=options.steps, most=most, seed=options.seed
        )
        training = cut(training_runs, most)
        validation = cut(validation_runs, min(most, options.validation_windows))
        test = cut(test_runs, None)
    except ValueError as wrong:
        raise UserError(f"{path}: {wrong}") from None
    coordinates, parametrisation, logarithmic = choose_parameters(
        problem, options.learn, options.raw
    )

    config = {
        "options": settings.as_json(dataclasses.replace(options, data=options.data and path)),
        "data_sha256": fingerprint(path),
        "versions": versions(),
    }
    if not continues:
        create(options.out, config, description)
    elif read_json(options.out / "config.json").get("data_sha256") != config["data_sha256"]:
        raise UserError(f"{path} has changed since the fit began; start a new fit.")
    number = training.time.shape[0]
    print(
        f"{path.name}: {demonstrations.runs} runs of {demonstrations.steps} steps. Learning "
        f"{options.learn} by {options.by} from {number} windows of {training_runs.runs} runs"
        + (f"; {', '.join(logarithmic)} through logarithms." if logarithmic else ".")
    )

    solver = DDP(max_iterations=options.max_iterations)
    judge = ImitationLoss(solver)
    imitates = options.by == "imitation"
    loss = ImitationLoss(solver, options.states_weight) if imitates else SystemIdentificationLoss()
    # The short memory of the second moment lets steps grow again when gradients, which early on
    # are long and disagree, have become short and agree.
    steps = epochs * -(-number // options.batch_size)
    schedule = optax.cosine_decay_schedule(options.learning_rate, steps)
    try:
        trained = train(
            loss,
            parametrisation,
            coordinates,
            training,
            validation,
            optimiser=optax.adam(schedule, b2=0.95),
            epochs=epochs,
            batch_size=options.batch_size,
            key=jax.random.key(options.seed),
            folder=options.out,
            resume=continues,
            checkpoint_every=options.checkpoint_every,
            restart_every=options.restart_every,
            clip=options.clip,
            validation_loss=judge if imitates else None,
            describe=lambda model: values(model, options.learn),
            report=progress.training(),
        )
    except CheckpointError as wrong:
        raise UserError(str(wrong)) from None
    save_controller(options.out, trained.model)

    learned = evaluate(judge, trained.model, test, options.batch_size)
    shown = fit_report.most_active(test_runs)
    driven = fit_report.closed_loop(trained.model, solver, shown, options.steps)
    report = fit_report.parameters(options.learn, description, problem, trained)
    write_json(options.out / "parameters.json", report)
    write_json(
        options.out / "result.json",
        {
            "held_out_runs": test_runs.runs,
            "held_out_windows": test.time.shape[0],
            "imitation_loss": learned.loss,
            "left_out": learned.left_out,
            "best_epoch": trained.best_epoch,
        },
    )
    fit_report.say(report)
    fit_report.say_loss(learned, test_runs.runs)
    written = fit_report.draw(
        options.out,
        description,
        trained.metrics,
        shown,
        driven,
        report,
        trained.model,
    )
    print(f"{options.out} holds the learned controller; pictures:", *written, sep="\n  ")
