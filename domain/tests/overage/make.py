"""Makes overage.csv: what is used beyond a quota and what that costs, by Python's decimal arithmetic, rounded half up to the cent."""

import random
from decimal import ROUND_HALF_UP, Decimal

random.seed(20261121)
print("used,quota,amount,per,overage,cents")
for _ in range(2000):
    quota = random.choice([0, 1000, 10_000, 100_000, random.randrange(1, 10**9)])
    used = max(0, quota + random.choice([-1, 0, 1, 49, 50, random.randrange(-1000, 10**6)]))
    amount, per = random.choice([(2000, 1000), (1500, 1000), (1000, 1000), (2, 1), (random.randrange(0, 5000), random.randrange(1, 3000))])
    overage = max(0, used - quota)
    cents = (Decimal(overage) * Decimal(amount) / Decimal(per)).quantize(Decimal(1), ROUND_HALF_UP)
    print(f"{used},{quota},{amount},{per},{overage},{cents}")
