"""Models quantised to int8, with the Dice that it costs."""
