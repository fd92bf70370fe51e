"""The rates suite: learning rates of the student for each method, on seeds of their own."""

from __future__ import annotations

from dataclasses import replace

from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.fisher import Fisher

from .page import Claim
from .toy import LONG, Row, ToySuite


class RatesSuite(ToySuite):
    """Learning rates of the student for each method, on separate seeds."""

    page, title, suite = "ablations_rates.md", "Learning rates of the ablations", "rates"
    note = (
        "Distances are sliced W2 to the data. The ablations use other seeds and take each"
        " method's lowest rate within 0.01 of its best. Runs differ by that much, and at"
        " a high rate the modes' shares drift. DMD2's runs differ by more. Only its"
        " distance and grid are chosen here, and its rate by the mean over three seeds"
        " ([its rates](ablations_dmd2_rates.md))."
    )

    def rows(self) -> list[Row]:
        """Return all methods with four rates, and the baseline also by distance and grid.

        Returns:
            Rows of the table.
        """
        rows = []
        for name, recipe in self._methods().items():
            baseline = name.startswith("dmd2")
            rates, solver = (
                ((3e-4, 1e-3, 3e-3, 1e-2), "renoise")
                if baseline
                else ((1e-4, 3e-4, 1e-3, 3e-3), "ddim")
            )
            rows += [
                Row(name, f"{name}, lr {rate:g}", replace(recipe, lr_student=rate), (solver,))
                for rate in rates
            ]
        long = self._dmd2(LONG)
        name = f"dmd2, l2, uniform grid, {long.iterations} iterations"
        rows += [
            Row(name, f"{name}, lr {rate:g}", replace(long, lr_student=rate), ("renoise",))
            for rate in (3e-4, 1e-3, 3e-3)
        ]
        return rows

    def _methods(self) -> dict:
        plain, huber = self._method(DMD2, distance="l2"), self._method(DMD2, distance="huber")
        return {
            **{
                distance: self._of(distance=distance)
                for distance in ("l2", "huber", "huber_vector")
            },
            "fisher": self._method(Fisher),
            "dmd2, l2": plain,
            "dmd2, huber": huber,
            "dmd2, l2, uniform grid": replace(plain, shift=1.0),
            "dmd2, huber, uniform grid": replace(huber, shift=1.0),
        }

    def claims(self) -> list[Claim]:
        """Return no claims; this page only chooses learning rates.

        Returns:
            An empty list.
        """
        return []
