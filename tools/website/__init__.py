"The parts of `tools/docs.py`: layout of the sidebar, symbols of the package, pages, index, finish."
