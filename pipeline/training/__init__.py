"""The training loop, its schedule, and the state that an interrupted run goes on from."""
