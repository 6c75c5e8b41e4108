"""`diffcontrol evaluate`: a learned controller in closed loop, beside its expert."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from .. import MPC
from ..systems.drawing import animate
from . import pictures, progress
from .controller import build_controller, true_problem
from .episodes import Episodes, check_length, run_episodes, seeds_of
from .errors import UserError
from .named import SYSTEMS, axes_of, load_attribute, load_dynamics, system_named
from .plants import PREFIX, EquationsPlant, Plant, check_fit, plant_named, usual_plant
from .run_folder import load_controller, load_description, problem_like, write_json


@dataclasses.dataclass(frozen=True)
class Options:
    """Drive a plant with the controller of a run folder, and with its expert where it is known.

    Reports the returns of both from the same starts and how often controls are at their bounds,
    and draws closed loops, returns and an animation.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder that `diffcontrol fit` wrote."""
    plant: str | None = None
    """pendulum, complex_pendulum, cartpole, double_integrator; module:attribute of a callable
    (x, u, t) -> next x in JAX, whose reward is minus the problem's stage cost; or
    gymnasium:ENVIRONMENT. By default the plant that the demonstrations were recorded in, or that
    the controller was tuned on."""
    starts: str | None = None
    """module:function, random key -> initial state (n,), for a plant given as module:attribute;
    by default those that the controller was tuned from."""
    episodes: int = 20
    """Number N of episodes."""
    steps: int | None = None
    """Number L of steps of each episode; by default as many as the plant allows, or 200."""
    first_seed: int = 0
    """The episodes start from the seeds first_seed, first_seed + 1, ..."""
    out: Path | None = None
    """Folder for what is written; by default `evaluation` in the run folder. Nothing is
    overwritten."""
    state_of: str | None = None
    """module:function, observation -> state (n,), for Gymnasium environments other than
    Pendulum-v1; numpy:asarray if the observation is the state."""
    action_of: str | None = None
    """module:function, control (m,) -> action; by default the control is the action."""


def run(options: Options) -> None:
    """Evaluate, write the numbers and pictures, and name them.

    Raises:
        UserError: for whatever the user can put right.
    """
    seeds = seeds_of(options.first_seed, options.episodes, options.steps)
    if not options.run.is_dir():
        raise UserError(f"There is no run folder {options.run}; `diffcontrol fit` writes one.")
    out = options.run / "evaluation" if options.out is None else options.out
    if out.exists():
        raise UserError(f"{out} exists and is not overwritten; remove it, or give another --out.")
    description, learned = load_description(options.run), load_controller(options.run)
    name = options.plant or description.get("plant")
    if name is None and "system" in description:
        name = usual_plant(description["system"])
    if name is None:
        raise UserError("It is not known which plant to drive; give --plant.")
    controllers = {"learned": learned}
    expert = expert_of(description)
    if expert is not None:
        controllers["expert"] = expert

    plants = {who: _plant(name, options, description) for who in controllers}
    plant = plants["learned"]
    steps = options.steps or plant.most_steps or 200
    check_length(plant, steps)
    episodes = _drive(controllers, plants, seeds, steps)

    bounds = learned.problem.control_bounds
    report: dict[str, Any] = {
        "plant": name,
        "model_lacks": plant.lacks,
        "seeds": seeds,
        "steps": steps,
        **{who: _numbers(of, bounds) for who, of in episodes.items()},
    }
    if expert is not None:
        best = report["expert"]["mean_return"]
        if best != 0.0:
            apart = report["learned"]["mean_return"] - best
            report["difference_percent"] = 100 * apart / abs(best)
    out.mkdir(parents=True)
    write_json(out / "evaluation.json", report)
    _say(report)
    written = _draw(out, episodes, seeds, plant.time_step, bounds, description.get("system"))
    print("pictures:", *written, sep="\n  ")


def _plant(name: str, options: Options, description: dict[str, Any]) -> Plant:
    if name.startswith(PREFIX) or ":" not in name:
        return plant_named(name, options.state_of, options.action_of)
    problem = problem_like(description)
    is_problem = name == description.get("problem")
    dynamics = problem.dynamics if is_problem else load_dynamics(name)
    starts = options.starts or description.get("starts")
    if starts is not None:
        start = load_attribute(starts)
    elif "system" in description:
        start = system_named(description["system"]).module.start
    else:
        raise UserError(
            f"It is not known where closed loops on {name} start; give --starts module:function, "
            "a function of a random key that returns an initial state (n,)."
        )
    check_fit(start, name, dynamics, problem.control_size)
    lacks = f"What the model lacks is not known: {name} is your own."
    time_step = getattr(dynamics, "time_step", None)
    return EquationsPlant(name, dynamics, problem.stage_cost, start, time_step, lacks)


def expert_of(description: dict[str, Any]) -> MPC | None:
    """The expert that a description states, with its true parameters, or None if it does not."""
    if not {"system", "parameters", "controller"} <= description.keys():
        return None
    return build_controller(true_problem(description), description)


def _drive(
    controllers: dict[str, MPC], plants: dict[str, Plant], seeds: list[int], steps: int
) -> dict[str, Episodes]:
    """Both controllers at once, each in its own thread, after compiling for one step."""
    try:
        for who, controller in controllers.items():
            run_episodes(controller, plants[who], seeds, 1)

        def drive(who: str) -> Episodes:
            told = progress.steps("driving", steps) if who == "learned" else (lambda step: None)
            return run_episodes(controllers[who], plants[who], seeds, steps, told)

        with ThreadPoolExecutor(len(controllers)) as pool:
            return dict(zip(controllers, pool.map(drive, controllers), strict=True))
    finally:
        for plant in plants.values():
            plant.close()


def _numbers(episodes: Episodes, bounds) -> dict[str, Any]:
    # What follows the end of an episode drove nothing.
    drove = np.arange(episodes.controls.shape[1]) < episodes.lengths[:, None]
    return {
        "mean_return": float(episodes.returns.mean()),
        "returns": [float(value) for value in episodes.returns],
        "share_at_bound": share_at_bound(episodes.controls[drove], bounds),
        "share_of_unsolved_steps": float(episodes.unsolved[drove].mean()),
    }


def share_at_bound(controls, bounds) -> float:
    """The share of the controls `(..., m)` that lie at one of their bounds."""
    if bounds is None:
        return 0.0
    # Bounds that differ between stages: the applied control is that of the first.
    first = lambda side: np.asarray(side)[0] if np.ndim(side) == 2 else np.asarray(side)
    lower, upper = first(bounds.lower), first(bounds.upper)
    near = 1e-6 * np.where(np.isfinite(upper - lower), upper - lower, 1.0)
    return float(((controls <= lower + near) | (controls >= upper - near)).mean())


def _say(report: dict[str, Any]) -> None:
    print(report["model_lacks"])
    print(f"{report['plant']}, {len(report['seeds'])} episodes of {report['steps']} steps:")
    for who in ("learned", "expert"):
        if who in report:
            of = report[who]
            print(
                f"  {who:<8} mean return {of['mean_return']:9.2f}, worst {min(of['returns']):9.2f},"
                f" controls at a bound {100 * of['share_at_bound']:4.1f} %, steps not solved "
                f"{100 * of['share_of_unsolved_steps']:.2f} %"
            )
    if "difference_percent" in report:
        print(
            "  the learned return differs from the expert's by "
            f"{report['difference_percent']:+.2f} %"
        )


def _draw(out: Path, episodes, seeds, time_step, bounds, system: str | None) -> list[Path]:
    """The pictures: the hardest, the middle and the easiest start, all returns, an animation."""
    learned, expert = episodes["learned"], episodes.get("expert")
    compared = learned if expert is None else expert
    order = np.argsort(compared.returns, kind="stable")
    chosen = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])})
    known = SYSTEMS.get(system or "")
    written = [out / "closed_loop.png", out / "returns.png"]
    listed = ", ".join(str(seeds[i]) for i in chosen)
    pictures.trajectories(
        time_step,
        None if expert is None else (expert.states[chosen], expert.controls[chosen]),
        (learned.states[chosen], learned.controls[chosen]),
        axes_of(known, learned.states.shape[-1], learned.controls.shape[-1]),
        written[0],
        title=f"Closed loop from the starts of seeds {listed}",
        bounds=bounds,
    )
    pictures.returns(seeds, None if expert is None else expert.returns, learned.returns, written[1])
    if known is not None and known.draw is not None and time_step is not None:
        written.append(out / "closed_loop.gif")
        hardest, steps = int(order[0]), min(learned.controls.shape[1], round(5.0 / time_step))
        animate(
            learned.states[hardest, : steps + 1],
            learned.controls[hardest, :steps],
            time_step,
            known.draw,
            written[-1],
        )
    return written
