"""Trajectories that continue from iteration to iteration: `objective.rollout` "stream".

A rollout starts every trajectory from pure noise, uses one of its states and discards the others.
Here each sample of the global batch is a slot that keeps its state x at s_k. One graded call of the
student at s_k serves all turns of an iteration, and its clean prediction moves the slot to s_{k-1}
for the next iteration. After k = 1, the slot starts again from noise with the next prompt. With
guidance, an iteration makes 5 forward and 2 backward passes for any K. The weights that made a
state are at most K - 1 updates old.

The k, K and prompt of a slot depend only on its index in the global batch and on its number of
starts. Therefore a run can resume on another number of ranks with the same trajectories.

Shapes: B is the number of slots in a micro-batch; states are [B, ...], times and steps are [B].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..diffusion.denoiser import Cond, Denoiser
from ..diffusion.grid import TimeGrid
from ..diffusion.process import Process
from ..diffusion.sampler import Before, Trajectory, advance, fresh_noise
from .ended import Ended
from .objective import Objective
from .slots import Made, States, select, stepped
from .timetable import Schedule, Timetable
from .trajectories import Generators, Place


class Stream:
    """Slots of one rank, in micro-batches."""

    def __init__(
        self,
        objective: Objective,
        grids: Sequence[TimeGrid],
        streams: Generators,
        shape: tuple[int, ...],
        *,
        micros: int = 1,
        first_stream: int = 0,
        total_micros: int | None = None,
        rewards: int = 0,
    ):
        """Schedule the first trajectories. `begin` rolls them out.

        Args:
            objective: The method.
            grids: One grid per number of steps K that is trained.
            streams: Random generators of the run.
            shape: Shape of a micro-batch, [B, ...].
            micros: Number of micro-batches of this rank.
            first_stream: Index of its first micro-batch among those of all ranks.
            total_micros: Number of micro-batches of all ranks; None for a single rank.
            rewards: Number of rewards of finished trajectories. 0 stores no finished trajectories.
        """
        self.objective, self.streams, self.shape = objective, streams, shape
        self.first_stream = first_stream
        self.steps = [grid.steps for grid in grids]
        total = (total_micros or micros) * shape[0]
        self.timetable = Timetable(self.steps, total, objective.stagger, streams)
        width = max(self.steps) + 1
        rows = [[*grid.times, *[0.0] * (width - len(grid.times))] for grid in grids]
        self.times = torch.tensor(rows, device=streams.device)  # [grids, K + 1]
        self.steps_of = torch.tensor(self.steps, device=streams.device)  # [grids]
        self.boundary = grids[0].boundary
        self.schedules = [self.timetable.first(self._slots(micro)) for micro in range(micros)]
        self.states: list[States] = []
        self.ended: list[Ended] = []
        """Finished trajectories of each micro-batch; empty without rewards."""
        if rewards:
            self.ended = [
                Ended.empty(max(self.steps), shape, rewards, streams.device) for _ in range(micros)
            ]

    @property
    def numbers(self) -> range:
        """Numbers of the sets of trajectories: 0 is shared by turns, the others are not."""
        return range(self.objective.own_trajectories + 1)

    def prompts(self, micro: int) -> list[int]:
        """Return the position of each slot's prompt in the infinite sequence of prompts.

        Args:
            micro: Index of the micro-batch on this rank.

        Returns:
            B positions.
        """
        return self.timetable.prompts(self.schedules[micro], self._slots(micro))

    @torch.no_grad()
    def begin(self, student: Denoiser, conds: Sequence[Cond]) -> None:
        """Roll the first trajectories out from noise to their k. Later calls do nothing.

        All ranks make the same number of calls, regardless of their k.

        Args:
            student: The student.
            conds: Conditioning of each micro-batch.
        """
        if not self.states:
            found = [self._rolled_out(student, micro, cond) for micro, cond in enumerate(conds)]
            self.states = found
            for micro, ended in enumerate(self.ended):
                ended.end(dict(enumerate(zip(self.schedules[micro].grid, self.prompts(micro)))))

    def path(self, micro: int, cond: Cond, number: int = 0) -> Trajectory:
        """Return the current trajectories of a micro-batch.

        Args:
            micro: Index of the micro-batch on this rank.
            cond: Conditioning of its prompts.
            number: Number of the set of trajectories.

        Returns:
            The trajectories at s_k, with states [B, ...].
        """
        return self._path(self.states[micro], cond, number)

    def past_share(self, micro: int) -> Tensor:
        """Compute the weight of each slot's last finished trajectory that corrects for its K.

        A slot starts a trajectory of K steps with a probability proportional to 1 / K, and keeps a
        finished one until the next ends. Without the weight, the fake would be trained on large K
        less often than the student.

        Args:
            micro: Index of the micro-batch on this rank.

        Returns:
            Weights, [B].
        """
        inverse = torch.tensor([1 / count for count in self.steps], device=self.streams.device)
        grid = torch.tensor(self.ended[micro].grid, device=self.streams.device)
        return self.steps_of[grid] * inverse.mean()

    def past(self, step: int, micro: int, cond: Cond) -> tuple[Trajectory, Tensor]:
        """Draw a state from the last finished trajectory of each slot.

        Args:
            step: Iteration, which seeds the draw of k.
            micro: Index of the micro-batch on this rank.
            cond: Conditioning of the prompts of the finished trajectories.

        Returns:
            The trajectories at s_k for a random k, and the clean predictions there, [B, ...].
        """
        ended, device = self.ended[micro], self.streams.device
        grid = torch.tensor(ended.grid, device=device)
        steps = self.steps_of[grid]
        drawn = self.streams.generator(step, "ended/k", self.first_stream + micro)
        u = torch.rand(len(grid), max(self.steps), generator=drawn, device=device)
        there = torch.arange(1, max(self.steps) + 1, device=device) <= steps[:, None]
        if self.boundary:  # all calls of an iteration use one network
            now = self.states[micro]
            high = self.times[now.grid, now.k] >= self.boundary
            there &= (self.times[grid][:, 1:] >= self.boundary) == high[:, None]
        k = torch.where(there, u, -1.0).argmax(1) + 1
        x, x0 = ended.past.at(k)
        before: tuple[Before, ...] = ()
        if self.objective.solver == "dpm++":
            earlier = torch.minimum(k + 1, steps)  # the first call points to itself, i.e. no before
            before = (Before(ended.past.at(earlier)[1], self.times[grid, earlier]),)
        return self._path(States(k, grid, (x,), before), cond, 0), x0

    @torch.no_grad()
    def move(
        self,
        step: int,
        predictions: Sequence[Sequence[Tensor | None]],
        process: Process,
        *,
        on: bool,
    ) -> Tensor:
        """Advance the slots on the device after the calls of an iteration.

        A slot that is done, or has a next state that is not finite, starts again from noise.

        Args:
            step: The iteration.
            predictions: Clean predictions [B, ...] by micro-batch and set; None if the iteration
                ended before the call.
            process: Process of the student.
            on: Whether all turns were applied. If not, slots keep their states.

        Returns:
            Whether each next state is finite, [micro-batches, B] on the device. Pass it to
            `settle`.
        """
        found = []
        for micro, state in enumerate(self.states):
            made: list[Made] = []
            for number, x0 in zip(self.numbers, predictions[micro]):
                path = self._path(state, Cond({}), number)
                name = Place(step, number=number).name("renoise")
                if x0 is None:
                    made.append((path.x, Before(path.x, path.upper)))
                else:
                    made.append(self._ahead(path, x0, process, micro, step, name))
            finite = torch.stack([x.flatten(1).isfinite().all(1) for x, _ in made]).all(0)
            if self.ended and on:
                self._remember(micro, state, predictions[micro][0], finite)
            self.states[micro] = self._moved(step, micro, made if on else None, finite)
            found.append(finite)
        return torch.stack(found)

    def settle(self, finite: Sequence[Sequence[float]], *, on: bool) -> None:
        """Update the schedules on the host to match what `move` did on the device.

        Args:
            finite: Result of `move`, copied to the host.
            on: The value that was passed to `move`.
        """
        for micro, well in enumerate(finite):
            now = self.schedules[micro]
            then = self.timetable.following(now, self._slots(micro)) if on else now
            if not on and self.boundary:
                well = [0.0] * len(well)
            if self.ended and on:
                done = zip(now.k, well, now.grid, self.prompts(micro))
                self.ended[micro].end(
                    {
                        slot: (grid, position)
                        for slot, (k, fine, grid, position) in enumerate(done)
                        if k == 1 and fine
                    }
                )
            k = [
                k if fine or (on and last == 1) else self.steps[grid]
                for k, last, grid, fine in zip(then.k, now.k, then.grid, well)
            ]
            self.schedules[micro] = Schedule(k, then.grid, then.starts)

    def tensors(self, micro: int) -> dict[str, Tensor]:
        """Return the state of a micro-batch for a checkpoint.

        Args:
            micro: Index of the micro-batch on this rank.

        Returns:
            Name -> tensor: schedules [B], states [B, ...], and histories [K, B, ...] with rewards.
        """
        state = self.states[micro]
        found = {name: torch.tensor(each) for name, each in vars(self.schedules[micro]).items()}
        for number, x in enumerate(state.sets):
            found[f"x/{number}"] = x
        for number, before in enumerate(state.before):
            found |= {f"before/{number}": before.x0, f"before/{number}/t": before.t}
        return found | (self.ended[micro].tensors() if self.ended else {})

    def restore(self, found: Sequence[Mapping[str, Tensor]]) -> None:
        """Restore the state that `tensors` returned.

        Args:
            found: Tensors of each micro-batch of this rank, by name, in the shapes of `tensors`:
                schedules [B], states [B, ...], histories [K, B, ...].

        Raises:
            ValueError: If a tensor is missing or has another shape.
        """
        self.schedules = [
            Schedule(**{name: _named(each, name, self.shape[:1]).tolist() for name in LISTS})
            for each in found
        ]
        self.states = [self._restored(*both) for both in zip(self.schedules, found)]
        for ended, each in zip(self.ended, found):
            ended.restore(
                {name: _named(each, name, t.shape) for name, t in ended.tensors().items()}
            )

    # On the host

    def _slots(self, micro: int) -> range:
        """Return the indices of a micro-batch's slots in the global batch."""
        first = (self.first_stream + micro) * self.shape[0]
        return range(first, first + self.shape[0])

    # On the device

    def _rolled_out(self, student: Denoiser, micro: int, cond: Cond) -> States:
        """Roll a micro-batch out, and return the state of each slot at its k.

        With rewards, trajectories are rolled out to the end.
        """
        schedule = self.schedules[micro]
        last, grid = torch.tensor([schedule.k, schedule.grid], device=self.streams.device)
        state = walking = self._fresh(0, micro, grid)
        calls = max(self.steps) - 1 if self.objective.stagger == "even" else 0
        for call in range(max(self.steps) if self.ended else calls):
            made, predictions = [], []
            for number in self.numbers:
                path = self._path(walking, cond, number)
                name = Place(0, number=number).name(f"begin/{call}")
                predictions.append(student(path.x, path.upper, path.cond))
                made.append(self._ahead(path, predictions[-1], student.process, micro, 0, name))
            if self.ended:
                self.ended[micro].past.note(walking.k, walking.sets[0], predictions[0])
            walking = select(walking.k > 1, stepped(walking, made), walking)
            state = select(walking.k >= last, walking, state)
        if self.ended:
            self.ended[micro].begin()
        return state

    def _remember(self, micro: int, state: States, x0: Tensor | None, finite: Tensor) -> None:
        """Store the states of an iteration, and the trajectories that end in it."""
        ended = self.ended[micro]
        assert x0 is not None, "all turns were applied"
        ended.going.note(state.k, state.sets[0], x0)
        ended.past.take((state.k == 1) & finite, ended.going)

    def _path(self, state: States, cond: Cond, number: int) -> Trajectory:
        steps = self.steps_of[state.grid]
        if self.objective.conditioned_on_steps:
            cond = cond.with_step_counts(steps)
        lower, upper, start = (self.times[state.grid, k] for k in (state.k - 1, state.k, steps))
        before = state.before[number] if state.before else None
        floor = None
        if self.boundary:
            floor = torch.where(upper >= self.boundary, self.boundary, 0.0)
        return Trajectory(state.sets[number], state.k, lower, upper, cond, before, start, floor)

    def _moved(self, step: int, micro: int, made: list[Made] | None, finite: Tensor) -> States:
        """Return the states of the next iteration.

        Without `made`, slots that are not finite start again. With two networks all slots start
        again, because they must stay on the same network.
        """
        state, again = self.states[micro], ~finite
        grid, ahead = state.grid, state
        if made is None and self.boundary:
            again = torch.ones_like(again)
        if made is not None:
            ahead, again = stepped(state, made), again | (state.k == 1)
            if len(self.steps) > 1:
                then = self.timetable.following(self.schedules[micro], self._slots(micro))
                grid = torch.tensor(then.grid, device=grid.device)
        return select(again, self._fresh(step + 1, micro, grid), ahead)

    def _fresh(self, step: int, micro: int, grid: Tensor) -> States:
        """Return slots at their initial noise."""
        sets, start = [], self.times[grid, self.steps_of[grid]]
        for number in self.numbers:
            place = Place(step, number=number)
            noise = self.streams.generator(step, place.name("z"), self.first_stream + micro)
            sets.append(torch.randn(self.shape, generator=noise, device=self.streams.device))
        keeps = self.objective.solver == "dpm++"
        before = tuple(Before(torch.zeros_like(x), start) for x in sets) if keeps else ()
        return States(self.steps_of[grid], grid, tuple(sets), before)

    def _ahead(
        self, path: Trajectory, x0: Tensor, process: Process, micro: int, step: int, name: str
    ) -> Made:
        """Make a solver step; return the next state and the prediction for a multistep solver."""
        solver, before = self.objective.solver, path.before or Before(x0, path.upper)
        noise = self.streams.generator(step, name, self.first_stream + micro)
        eps = fresh_noise(path.x, solver, noise)
        x = advance(process, path.x, x0, path.upper, path.lower, before, solver=solver, eps=eps)
        return x, Before(x0, path.upper)

    def _restored(self, schedule: Schedule, found: Mapping[str, Tensor]) -> States:
        device = self.streams.device
        k, grid = torch.tensor([schedule.k, schedule.grid], device=device)
        sets = [_named(found, f"x/{number}", self.shape).to(device) for number in self.numbers]
        before = []
        if self.objective.solver == "dpm++":
            for number in self.numbers:
                x0 = _named(found, f"before/{number}", self.shape)
                t = _named(found, f"before/{number}/t", self.shape[:1])
                before.append(Before(x0.to(device), t.to(device)))
        return States(k, grid, tuple(sets), tuple(before))


LISTS = ("k", "grid", "starts")


def _named(found: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in found or tuple(found[name].shape) != shape:
        held = tuple(found[name].shape) if name in found else "missing"
        raise ValueError(f"{name} is {held}, but must have the shape {shape}")
    return found[name]
