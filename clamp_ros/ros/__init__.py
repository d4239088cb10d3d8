"""The shared ROS code, and the only place for it: messages to values, parameters, the main of a node, transforms."""
