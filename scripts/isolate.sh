# Sourced by scripts/demo and scripts/test: a ROS installation that the shell has sourced stays out of .venv, whose wheels are a ROS
# of their own. To use the installed ROS, build with colcon instead (see README.md).
unset PYTHONPATH AMENT_PREFIX_PATH COLCON_PREFIX_PATH CMAKE_PREFIX_PATH ROS_DISTRO ROS_VERSION ROS_PYTHON_VERSION RMW_IMPLEMENTATION
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE # set by another environment's wheels, it would keep these from finding their libraries
LD_LIBRARY_PATH=$(printf '%s' "${LD_LIBRARY_PATH:-}" | tr ':' '\n' | grep -v '^/opt/ros/' | paste -sd: || true)
[ -n "$LD_LIBRARY_PATH" ] && export LD_LIBRARY_PATH || unset LD_LIBRARY_PATH
