"""Programs: each owns one loop and reads top-down."""
