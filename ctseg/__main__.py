"`python -m ctseg` is the `ctseg` command; torchrun and accelerate launch it by this name."
from ctseg.cli import main

if __name__ == "__main__": main()
