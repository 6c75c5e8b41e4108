"""Time the peers on one case, taking turns, so that a busy machine hits them alike."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .cases import Case, data
from .judge import judge
from .peers import Peer, Worker

FORWARD, BOTH = "forward", "forward+backward"
_TURN = 0.05  # a turn repeats short calls for so long [s]
_PATIENCE = 10.0  # a peer gets no further turn when its calls have taken so long [s]


def measure(
    case: Case,
    peers: Sequence[Peer],
    rounds: int,
    folder: Path,
    functions: Sequence[str] = (BOTH, FORWARD),
    look: Callable[[Case, dict, dict], dict] | None = judge,
) -> list[dict]:
    """One row a peer; `folder` is for files in between.

    Rows hold seconds of a call, CPU time on one core and wall time on several: medians over the
    rounds (`forward`, `forward+backward`) and minima (`..., least`); the first call, and how much
    of it is compilation, without any cache; the most memory that the process held [MB]; and what
    `look` finds in the answer. A peer that does not take part has an `error` instead.
    """
    arrays, arrays_file, answer = data(case), folder / "case.npz", folder / "answer.npz"
    np.savez(arrays_file, **arrays)
    with contextlib.ExitStack() as stack:
        players = []
        for peer in peers:
            if case.kind == "lq" or peer.systems:
                worker = stack.enter_context(Worker(peer, case.threads))
                player = _Player(case, peer, worker)
                player.prepare(case, arrays_file)
                players.append(player)
        for what in functions:  # the longer first, so that its first call compiles it all
            for player in players:
                player.begin(what)
            for _ in range(rounds):
                for player in players:
                    player.turn()
            for player in players:
                player.end()
        for player in players:
            reply = player.order(answer=str(answer)) if look else None
            if look and reply:
                player.row["memory_mb"] = reply["memory_mb"]
                player.row.update(look(case, dict(np.load(answer)), arrays))
    return [player.row for player in players]


class _Player:
    """One peer on one case. After an error it only looks on."""

    def __init__(self, case: Case, peer: Peer, worker: Worker):
        self.peer, self.worker = peer, worker
        self.row: dict = {"case": case.name, "peer": peer.name, "threads": case.threads}
        self.clock = "cpu" if case.threads == 1 else "wall"
        self.functions: list[str] = []
        self.samples: list[float] = []

    def order(self, **order) -> dict | None:
        """The reply, or None after an error, which the row then holds."""
        if "error" in self.row:
            return None
        reply = self.worker.ask(**order)
        if "error" in reply:
            self.row["error"] = reply["error"]
            return None
        return reply

    def prepare(self, case: Case, arrays_file: Path) -> None:
        reply = self.order(case=dataclasses.asdict(case), arrays=str(arrays_file))
        if reply is not None:
            self.functions = reply["functions"]

    def begin(self, what: str) -> None:
        """A first call, which may compile, and a second one to see how many make a turn."""
        self.what, self.samples, self.spent, self.repeats = what, [], 0.0, 1
        self.turn()
        if not self.samples:
            return
        self.row[f"{what}, first call"] = self.samples[0]
        if self.peer.compiles or self.spent < _PATIENCE:
            self.samples, self.spent = [], 0.0
            self.turn()
            self.repeats = max(1, min(200, int(_TURN / max(self.spent, 1e-9))))

    def turn(self) -> None:
        if self.what not in self.functions or self.spent > _PATIENCE:
            return
        reply = self.order(run=self.what, times=self.repeats)
        if reply is not None:
            self.spent += reply["wall"] * self.repeats
            self.samples.append(reply[self.clock])

    def end(self) -> None:
        if not self.samples or "error" in self.row:
            return
        self.row[self.what] = float(np.median(self.samples))
        self.row[f"{self.what}, least"] = float(np.min(self.samples))
        if self.peer.compiles:
            first = self.row[f"{self.what}, first call"]
            self.row[f"{self.what}, compile"] = first - self.row[self.what]
