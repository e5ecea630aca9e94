"""One file an agent: its frozen settings, its losses (a function an equation), `act` and `update`."""
