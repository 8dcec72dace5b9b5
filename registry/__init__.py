"""What we trust: tracking, packaging, gates, promotion and verified loading."""
