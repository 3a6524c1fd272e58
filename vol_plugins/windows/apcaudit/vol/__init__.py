"""The parts that vol itself calls: requirements and their diagnosis, automagic for types, stackers for layers."""
