"""Speech engines. Each knows audio and the domain; none knows HTTP, the slot or jobs."""
