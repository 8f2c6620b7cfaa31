"The parts of `tools/docs.py`: layout (which page stands where), symbols (the package's names), pages, index, finish."
