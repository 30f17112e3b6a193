"""Pictures of networks and charts, as SVG, PNG and text for terminals."""
