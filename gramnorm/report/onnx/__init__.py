"""ONNX: the layers of a graph, and a Lipschitz constant composed along it."""
