"""Tables, published results and ablations of the paper."""
