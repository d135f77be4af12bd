"""What a step will need of devices that need not be there: memory, work, exchange, and a bound."""
