"One thread: the networks of the tests are tiny, and results do not depend on the number of cores. Set before torch is imported."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("same", derandomize=True)  # a second run tries the same examples: what fails, fails for everybody
settings.load_profile("same")
