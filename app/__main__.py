"""`python -m app` is `onecount`."""

from app.cli import main

if __name__ == "__main__":
    main()
