"""The checks: each reports a state that no legitimate course of events explains. Standard library only."""
