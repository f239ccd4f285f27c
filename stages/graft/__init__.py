"""What travels inside every exported graft: gate, bridge, blade, modeling."""
