"""`make soak`: how much memory the function holds after 100,000 requests, and on the way there."""

import random
import sys
from collections.abc import Iterator

from tests.bench.loads import Load, another, loads
from tests.bench.servers import OURS, Target, compile_servers, serve

REQUESTS, STEPS = 100_000, 20
COMPOSITES = 300
# MiB after all of it, of which the SDK's identity function takes 47; and how much may come in the second half.
GATE, GROWTH = 60, 1
# Of ten requests; the others are steady.
CHANGED, FIRST = 2, 1


def requests(of: dict[str, Load]) -> Iterator[bytes]:
    """Go round composites, tiers and engines, of which some are new and some have changed."""
    order = random.Random(1)
    for number in range(REQUESTS):
        kind = "tier lmcache" if number % 11 == 0 else "engine lmcache"
        draw = order.random() * 10
        state = "changed" if draw < CHANGED else "first" if draw < CHANGED + FIRST else "steady"
        load = of[f"{kind}, {state}"]
        if load.vary:
            load.vary(load.request, number)
        another(load.request, number if state == "first" else number % COMPOSITES)
        yield load.request.SerializeToString()


def main() -> int:
    compile_servers()
    of = {load.name: load for load in loads(small=True)}
    curve = []
    with serve(OURS, "--insecure", "--trust-resource-versions") as server:
        target = Target(OURS, *server)
        curve.append(target.memory())
        print(f"{'requests':>9}{'MiB':>7}\n{0:>9}{curve[-1]:>7.1f}", flush=True)
        asked = requests(of)
        for step in range(1, STEPS + 1):
            target.calls([next(asked) for _ in range(REQUESTS // STEPS)])
            curve.append(target.memory())
            print(f"{REQUESTS // STEPS * step:>9}{curve[-1]:>7.1f}", flush=True)
    grown = curve[-1] - curve[STEPS // 2]
    print(f"{curve[-1]:.0f} MiB at the end (gate {GATE}), {grown:+.1f} in the second half (gate {GROWTH})")
    return 1 if curve[-1] > GATE or grown > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
