"""Gymnasium's HalfCheetah-v5, driven step by step: starts, steps and reward are its own."""

import functools
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np

STATE, CONTROL, TIME_STEP = 18, 6, 0.05  # [1], [1], [s]


def check_installed() -> None:
    missing = [name for name in ("gymnasium", "mujoco") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} must be installed: run `pip install 'diffcontrol[sim]'`."
        )


@functools.cache
def _animal():
    """MuJoCo's model, from the file that Gymnasium brings. Not its environment, which also wants a
    package that writes pictures."""
    import mujoco

    (place,) = importlib.util.find_spec("gymnasium").submodule_search_locations
    text = (Path(place) / "envs" / "mujoco" / "assets" / "half_cheetah.xml").read_text()
    # MuJoCo warns of this attribute, and asks for the function instead.
    told = ' settotalmass="14"'
    model = mujoco.MjModel.from_xml_string(text.replace(told, ""))
    if told in text:
        mujoco.mj_setTotalmass(model, 14.0)
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


class Simulator:
    """One episode; the state has the distance too."""

    def __init__(self, seed: int):
        import mujoco

        self._model, self._step = _animal(), mujoco.mj_step
        self._data = mujoco.MjData(self._model)
        generator = np.random.default_rng(seed)
        self._data.qpos += generator.uniform(-0.1, 0.1, 9)
        self._data.qvel += 0.1 * generator.standard_normal(9)
        mujoco.mj_forward(self._model, self._data)

    @property
    def state(self) -> np.ndarray:
        """`(18,)`: distance [m], the other positions, and all speeds."""
        return np.concatenate([self._data.qpos, self._data.qvel])

    def step(self, control: np.ndarray) -> float:
        """The reward."""
        before = self._data.qpos[0]
        self._data.ctrl[:] = control
        self._step(self._model, self._data, nstep=5)
        return (self._data.qpos[0] - before) / TIME_STEP - 0.1 * float(control @ control)


def drive(act, steps: int, seed: int, noise: float = 0.0):
    """States `(L+1, 18)`, controls `(L, 6)` and return of an episode."""
    simulator, generator = Simulator(seed), np.random.default_rng([seed, 1])
    states, controls, total = [simulator.state], [], 0.0
    for t in range(steps):
        x = states[-1].astype(np.float32)
        x[0] = 0.0
        control = np.asarray(act(jnp.asarray(x), t), float)
        control = np.clip(control + noise * generator.standard_normal(CONTROL), -1.0, 1.0)
        total += simulator.step(control)
        states.append(simulator.state)
        controls.append(control)
    return np.array(states), np.array(controls), float(total)
