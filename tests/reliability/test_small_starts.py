"""Weights that start small train under every policy and rounding nearly as in float32; see `small_starts`.

How many of 36 runs each passed (six networks, SGD and AdamW, three learning rates):

    AdaPT()          nearest 36, stochastic 35        learned widths   8 bits 36, 4 bits 36
    compact()        nearest 36, stochastic 36        LSQ              8 bits 36, 4 bits 36, 2 bits 30
    compact(bits=4)  nearest 36, stochastic 35
    MuPPET           nearest 36, stochastic 36
    Fixed(8, 6)      nearest 36, stochastic 36
    CyclicPrecision  nearest 36, stochastic 36

All runs kept below twice their first loss, or float32's largest where that is above it. Those that missed are
`MISSES`: two under stochastic rounding by about a hundredth, and six of LSQ at 2 bits, which take up to three times as
many steps; docs/guarantees.md tells how that was found.
"""

import pytest

from tests.reliability.small_starts import Case, cases, judge

MISSES = {
    Case("AdaPT()", "stochastic", "transformer", "AdamW", 1e-3): 1.02,
    Case("compact(bits=4)", "stochastic", "LoRA", "SGD", 0.1): 1.02,
    Case("LSQ, 2 bits", "nearest", "head .01", "AdamW", 1e-3): 1.04,
    Case("LSQ, 2 bits", "nearest", "transformer", "AdamW", 1e-3): 1.08,
    Case("LSQ, 2 bits", "nearest", "LoRA", "SGD", 0.03): 1.05,
    Case("LSQ, 2 bits", "nearest", "LoRA", "SGD", 0.1): 1.08,
    Case("LSQ, 2 bits", "nearest", "LoRA", "AdamW", 3e-3): 1.01,
    Case("LSQ, 2 bits", "nearest", "LoRA", "AdamW", 1e-2): 1.06,
}
"""How far above what they may be, 1.1 times the better reference, the final losses of the runs come that miss."""


def check(case):
    verdict = judge(case)
    assert verdict.largest <= 1, case
    assert verdict.final <= MISSES.get(case, 1), case


# Float32's and ⟨8, 6⟩'s runs of these are shared.
FEW = [
    case
    for case in cases(["head 0", "LoRA"])
    if (case.optimizer, case.rate) == ("SGD", 0.03) and case.how in ("compact()", "AdaPT()", "MuPPET", "LSQ, 4 bits")
]


@pytest.mark.parametrize("case", FEW, ids=lambda case: f"{case.how} {case.rounding} {case.network}")
def test_a_few_runs_that_start_small_train_as_in_float32(case):
    check(case)


@pytest.mark.long
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: " ".join(map(str, case)))
def test_all_runs_that_start_small_train_as_in_float32(case):
    check(case)
