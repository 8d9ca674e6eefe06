"""Makes `python -m vehclass` the same as `vehclass`."""

from vehclass.cli import main

if __name__ == "__main__":
    main()
