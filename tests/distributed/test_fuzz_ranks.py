"""Random calls of `fuzz` whose rows are shared among three ranks; `make fuzz` runs 1,000."""

import fuzz
from support.ranks import Pool


def test_ranks_together_agree_with_the_oracle():
    numbers = [*range(100), 2150]  # the last has float16 gradients that are infinite before they are averaged
    pool = Pool(3)
    try:
        answers = fuzz.together(pool, 3, 0, numbers, 8)
    finally:
        pool.end()
    for number, ours in zip(numbers, answers, strict=True):
        problem, answer = fuzz.exact(fuzz.case(0, number))
        share, about = fuzz.faults(answer, ours, problem.choice["dtype"], ranks=3)
        assert share <= 1, f"case {number}: {about}; {fuzz.describe(problem)}"
