"""`python -m mdp_fx`."""

from mdp_fx.cli import main

if __name__ == "__main__":
    main()
