"""What the tests are made with: array libraries, adversarial families, oracles, long searches."""
