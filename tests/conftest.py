"One thread: the networks of the tests are tiny, and results do not depend on the number of cores. Set before torch is imported."
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
