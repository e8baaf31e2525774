"""A folder of cases, from its files to what a network trains on."""
