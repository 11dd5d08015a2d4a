"""What every command shares: its frame, its help, and `resume=`."""
