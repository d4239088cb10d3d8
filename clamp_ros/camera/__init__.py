"""From camera drivers to matched RGB-D frames."""
