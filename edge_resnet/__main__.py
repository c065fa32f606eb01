"""`python -m edge_resnet` is `edge-resnet`."""

from edge_resnet.cli.main import main

if __name__ == "__main__":
    main()
