"""Networks before and after a controller, trained end to end in PyTorch.

    python examples/perception.py [--quick]

An expert swings a pendulum and writes down, for each moment, two camera pictures and the voltages
that it is about to apply. Nobody tells the learner a state, a torque, or how voltage and torque
belong together:

    pictures -> network -> state -> controller -> planned torques -> readout -> voltages

The only loss is the difference of the voltages. Its gradient reaches the network through the
controller, whose bounds are active, and trains the mass in the controller's model as well.
Voltages, readout and mass come out about right. The state is only one that explains the voltages:
what they hardly depend on, such as angle and speed moved against each other, need not be right.
"""

import sys

import torch

import diffcontrol as dc

PIXELS, HORIZON, LIMIT = 16, 10, 6.0  # limit of the torque [N m]
QUICK = "--quick" in sys.argv
SAMPLES, STEPS, BATCH = (64, 20, 32) if QUICK else (512, 1200, 32)
STEP_TIME = 0.05  # [s], between the two pictures and between two controls


def picture(angle: torch.Tensor) -> torch.Tensor:
    """What the camera sees of a rod at `angle` [rad]: a spot at its tip, `(B, pixels^2)`."""
    axis = torch.linspace(-1.4, 1.4, PIXELS)
    across = (axis - angle.sin()[:, None]) ** 2
    up = (axis - angle.cos()[:, None]) ** 2
    return torch.exp(-(up[:, :, None] + across[:, None, :]) / 0.05).flatten(1)


def pendulum(mass: float) -> dc.ControlProblem:
    return dc.ControlProblem(
        dynamics=dc.systems.Pendulum(mass=mass, time_step=STEP_TIME),
        stage_cost=dc.GoalCost(weights=[1.0, 1.0, 0.1, 0.02], goal=[1.0, 0.0, 0.0]),
        horizon=HORIZON,
        control_size=1,
        control_bounds=dc.Bounds(-LIMIT, LIMIT),
    )


def demonstrations(count: int):
    """Pictures now and one step ago `(B, 2 pixels^2)`, voltages `(B, T)`, and the true states."""
    angle, speed = (2 * torch.rand(2, count) - 1) * torch.tensor([[1.0], [2.0]])
    states = torch.stack([angle.cos(), angle.sin(), speed], dim=1)
    with torch.no_grad():
        torques = dc.torch.Controller(pendulum(mass=1.0))(states).controls[..., 0]
    pictures = torch.cat([picture(angle), picture(angle - STEP_TIME * speed)], dim=1)
    return pictures, 0.8 * torques + 0.5, states


class Learner(torch.nn.Module):
    """Perception, controller, readout. Solves that do not succeed are left out, and counted."""

    def __init__(self):
        super().__init__()
        self.perception = torch.nn.Sequential(
            torch.nn.Linear(2 * PIXELS**2, 64),
            torch.nn.Tanh(),
            torch.nn.Linear(64, 2),
        )
        self.controller = dc.torch.Controller(
            pendulum(mass=1.5), learn=lambda p: p.dynamics.mass, throw=False
        )
        self.readout = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.readout.weight)  # more torque for more voltage, to begin with

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        """The state, `(B, 3)`, from the angle and the speed that the network makes out."""
        angle, speed = self.perception(pictures).unbind(dim=1)
        return torch.stack([angle.cos(), angle.sin(), speed], dim=1)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.controller(self.see(pictures))
        return self.readout(plan.controls)[..., 0], plan.success


def main() -> None:
    torch.manual_seed(0)
    pictures, voltages, states = demonstrations(SAMPLES)
    learner = Learner()
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS + 1)
    left_out = 0
    for step in range(STEPS + 1):
        chosen = torch.randint(SAMPLES, (BATCH,))
        predicted, success = learner(pictures[chosen])
        left_out += int((~success).sum())
        loss = ((predicted - voltages[chosen])[success] ** 2).mean()
        if step % max(STEPS // 6, 1) == 0:
            with torch.no_grad():
                _, sine, speed = (learner.see(pictures) - states).square().mean(0).sqrt()
            print(
                f"step {step:4}  loss {loss.item():8.4f} V^2  error of the sine {sine:.3f}, of the "
                f"speed {speed:.3f} rad/s  mass {learner.controller.dynamics.mass.item():.3f} kg"
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    gain, offset = learner.readout.weight.item(), learner.readout.bias.item()
    print(f"voltage = {gain:.3f} torque + {offset:.3f} (the expert's: 0.8 and 0.5)")
    print(f"{left_out} of {BATCH * (STEPS + 1)} solves did not succeed and were left out")


if __name__ == "__main__":
    main()
