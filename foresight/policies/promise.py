"""From predicted damage to a PSNR that is reached as often as asked."""

import dataclasses
import math

from foresight.config import UserError


@dataclasses.dataclass(frozen=True)
class QualityPromise:
    """Conformal bound on the PSNR of a plan (Vovk 2015; Lei et al. 2018).

    What is predicted well is missed by less than what is not: misses are told in units of what is
    usual at their damage, `max(least, usual + rise * damage)` dB (the locally weighted form of Lei
    et al. 2018, section 5.2).

    Attributes:
        offset, slope: PSNR in dB against predicted log damage, fitted on roll-outs; the slope
            is negative.
        misses: (n,) measured minus fitted PSNR of roll-outs, in those units, rising; each prompt's
            as fitted to the other prompts.
        usual, rise, least: The usual miss in dB, fitted on roll-outs; the rise is not
            negative.
    """

    offset: float
    slope: float
    misses: list[float]
    usual: float = 1.0
    rise: float = 0.0
    least: float = 1.0

    def usual_miss(self, log_damage: float) -> float:
        """In dB, at a predicted damage."""
        return max(self.least, self.usual + self.rise * log_damage)

    def highest_log_damage(self, quality: float, confidence: float) -> float:
        """The most predicted log damage at which a share of generations reaches a PSNR.

        Args:
            quality: PSNR in dB.
            confidence: The share, between 0 and 1.

        Raises:
            UserError: If there are too few roll-outs for that share; names what there are
                enough for.
        """
        count = len(self.misses)
        rank = math.floor((count + 1) * (1 - confidence) + 1e-9)
        if rank < 1:
            raise UserError(
                f"--confidence {confidence:g} needs more roll-outs than the policy's "
                f"{count}; the most they can promise is {count / (count + 1):.2f}"
            )
        miss = self.misses[rank - 1]
        if miss >= 0:  # a larger usual miss would then mean a better video
            return (quality - self.offset - miss * self.least) / self.slope
        rising = (quality - self.offset - miss * self.usual) / (self.slope + miss * self.rise)
        return min(rising, (quality - self.offset - miss * self.least) / self.slope)
