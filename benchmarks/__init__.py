"""Speed and memory beside the peers: `python -m benchmarks.<name>`, results under `results/`."""
