"""Episodes on disk: one rosbag2 MCAP directory an episode, written by the recorder node and read without ROS."""
