"""`diffcontrol tune`: improve a controller by what it achieves in closed loop."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import optax
import tyro

from .. import ControlProblem
from ..learning import CheckpointError, train
from . import fit_report, progress, settings, tune_inputs, tune_report
from .errors import UserError
from .learner import choose_parameters, values
from .run_folder import create, fingerprint, read_json, refuse_if_taken, save_controller, write_json
from .task import Task
from .versions import versions


@dataclasses.dataclass(frozen=True)
class Options:
    """Tune the model or the cost of a controller for the cost of its closed loop on a plant.

    A receding-horizon controller drives the plant from random starts, and the gradient of what
    that costs, through the whole closed loop, moves its parameters. The cost by which it is judged
    is that of the problem as it stands, and is never learned. The parameters that do best from
    held-out starts are kept; the result states the cost before and after from yet other starts.
    Double precision throughout.
    """

    system: Annotated[str, tyro.conf.Positional]
    """pendulum, complex_pendulum, cartpole, double_integrator, or module:attribute of your own
    ControlProblem (or of a function that takes nothing and returns one), whose arrays are
    learned."""
    out: Path = Path("run")
    """The run folder to write. It must not exist, unless --resume."""
    resume: bool = False
    """Continue the tuning in --out from its last checkpoint; it ends in the same bits as if it had
    never been interrupted. Starts it if it had not begun."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A run folder of `diffcontrol fit` or `tune`, to start from the controller in it."""
    plant: str | None = None
    """What is driven: pendulum, complex_pendulum, cartpole, double_integrator with their usual
    parameters; module:attribute of a callable (x, u, t) -> next x in JAX; or
    gymnasium:ENVIRONMENT, which has no derivatives. By default the system with its usual
    parameters, or your own problem's dynamics. A plant should not clip controls: the
    controller keeps to its bounds."""
    starts: str | None = None
    """module:function, random key -> initial state (n,). Needed for your own problem, unless the
    plant is a Gymnasium environment, which has starts of its own."""
    by: Literal["derivatives", "likelihood-ratio"] = "derivatives"
    """How the gradient comes out. A plant in JAX is differentiated exactly. Along the recorded
    states of a Gymnasium environment the derivatives are those of the learned model, so they are
    as wrong as it is; or costs alone are used, without bias but with much noise, from controls
    that are disturbed by --sigma."""
    sigma: float = 0.3
    """Standard deviation of the noise of the controls, for --by likelihood-ratio."""
    learn: Literal["dynamics", "cost", "both"] = "dynamics"
    """Which part of the controller's problem is tuned."""
    start: tuple[str, ...] = ()
    """Where parameters start, as name=number, such as gravity=15 mass=3 length=0.5; others start
    from the papers' values, and weights of a tuned cost from 0.5."""
    raw: bool = False
    """Tune positive parameters as they are, not through their logarithms."""
    steps: int = 60
    """Number L of controls of a closed loop."""
    episodes: int = 32
    """Closed loops, each from a start of its own, to train on."""
    validation_episodes: int = 16
    """The same to select the best epoch."""
    test_episodes: int = 32
    """The same to measure what was achieved."""
    epochs: int = 20
    """Passes over the training episodes."""
    batch_size: int = 8
    """Episodes a step. A Gymnasium environment is driven anew before each step of the optimiser,
    with all episodes."""
    learning_rate: float = 0.05
    """Of Adam; falls to zero along a cosine."""
    horizon: int | None = None
    """Number T of controls of a plan; by default that of the system or problem."""
    max_iterations: int | None = None
    """Of the solver; by default that of the system's controller. An episode in which one solve
    does not converge is left out and counted."""
    plant_spread: float = 0.0
    """Robust tuning: each episode has a plant of its own, whose parameters differ from the given
    ones by about this share."""
    noise: tuple[float, ...] = ()
    """Standard deviation of what disturbs each state at each step: one number for all states, or
    one for each."""
    clip: float = 1.0
    """The longest gradient that one episode may contribute."""
    seed: int = 0
    """Of starts, plants and noise, and of the order of episodes."""
    checkpoint_every: float = 5.0
    """Seconds between checkpoints."""
    state_of: str | None = None
    """module:function, observation -> state (n,), for Gymnasium environments other than
    Pendulum-v1; numpy:asarray if the observation is the state."""
    action_of: str | None = None
    """module:function, control (m,) -> action; by default the control is the action."""
    quick: bool = False
    """Far less work, to see whether everything runs: 2 epochs of 8 episodes of 20 steps."""


def begun(options: Options) -> Options | None:
    """The settings of the tuning that is to be continued, or None if a new one begins.

    Raises:
        UserError: if the folder holds something else.
    """
    return settings.begun(options, paths=("from_",))


def run(options: Options) -> int:
    """Tune, write the run folder, and name what was drawn.

    Raises:
        UserError: for whatever the user can put right.
    """
    earlier = begun(options)
    if earlier is None:
        refuse_if_taken(options.out)
    else:
        settings.check_same(options, earlier)
    try:
        _tune(options, earlier is not None)
    except KeyboardInterrupt:
        if not (options.out / "config.json").exists():
            raise
        return settings.interrupted("tune", options)
    return 0


def _tune(options: Options, continues: bool) -> None:
    tune_inputs.check_numbers(options)
    asked = dataclasses.replace(options, from_=options.from_ and options.from_.resolve())
    if options.quick:
        options = dataclasses.replace(
            options,
            epochs=2,
            steps=min(options.steps, 20),
            episodes=8,
            validation_episodes=8,
            test_episodes=8,
        )
    description = tune_inputs.describe(options)
    problem = tune_inputs.starting_problem(options, description)
    with contextlib.closing(tune_inputs.task(options, description, problem)) as task:
        _tune_for(task, options, asked, description, problem, continues)


def _tune_for(
    task: Task,
    options: Options,
    asked: Options,
    description: dict[str, Any],
    problem: ControlProblem,
    continues: bool,
) -> None:
    coordinates, parametrisation, logarithmic = choose_parameters(
        problem, options.learn, options.raw
    )

    # First of all, since it shows whether controller and plant fit together.
    before = task.drive(problem)
    config: dict[str, Any] = {"options": settings.as_json(asked), "versions": versions()}
    if options.from_ is not None:
        config["from_sha256"] = fingerprint(options.from_ / "controller.eqx")
    if not continues:
        create(options.out, config, description)
    elif read_json(options.out / "config.json").get("from_sha256") != config.get("from_sha256"):
        raise UserError(f"{options.from_} has changed since the tuning began; start a new one.")
    print(
        f"Tuning {options.learn} of {options.system} on {tune_inputs.plant_name(options)} by "
        f"{options.episodes} closed loops of {options.steps} steps"
        + (f"; {', '.join(logarithmic)} through logarithms." if logarithmic else ".")
    )

    batch_size = task.size if task.whole else min(options.batch_size, options.episodes)
    batches = 1 if task.whole else -(-options.episodes // batch_size)
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.epochs * batches)
    try:
        trained = train(
            task.loss,
            parametrisation,
            coordinates,
            task.training,
            task.validation,
            optimiser=optax.adam(schedule, b2=0.95),
            epochs=options.epochs,
            batch_size=batch_size,
            key=jax.random.key(options.seed),
            folder=options.out,
            resume=continues,
            checkpoint_every=options.checkpoint_every,
            clip=options.clip if task.clips else None,
            validation_loss=task.judge,
            describe=lambda model: values(model, options.learn),
            report=progress.training(),
        )
    except CheckpointError as wrong:
        raise UserError(str(wrong)) from None
    save_controller(options.out, trained.model)

    after = task.drive(trained.model)
    report = fit_report.parameters(options.learn, description, problem, trained)
    result = tune_report.result(before, after, trained)
    write_json(options.out / "parameters.json", report)
    write_json(options.out / "result.json", result)
    fit_report.say(report)
    tune_report.say(result)
    written = tune_report.draw(
        options.out, description, trained, report, before, after, task.time_step
    )
    print(f"{options.out} holds the tuned controller; pictures:", *written, sep="\n  ")
