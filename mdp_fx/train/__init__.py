"""The training side: importance gathered while a network trains, schedules, masks, and the slim network at the end."""
